// The fit of codes 0 to `largest` to a super-block's own scales or minima (ggml's make_qp_quants),
// one lane a super-block.
#pragma once

#include "kernels/halves.hpp"
#include "kernels/search_scale.hpp"
#include "kernels/transposition.hpp"

namespace phiquant::kernels {

/// The codes of `size` scales or minima for each lane's super-block, and the scale of the codes.
template <class Arch, std::size_t size>
struct FittedCodes {
    alignas(k_alignment) std::int32_t codes[size][F32<Arch>::size];  // 0 to 255
    alignas(k_alignment) std::int32_t scale[F32<Arch>::size];        // float16
};

template <class Arch, std::size_t size, int largest>
class CodeFit {
    using Batch = F32<Arch>;
    using Integers = I32<Arch>;

public:
    /// `values` and `weights`: `size` of each for as many consecutive super-blocks as there are
    /// lanes. Values may be anything: negative, infinite, NaN.
    void run(const float* values, const float* weights, FittedCodes<Arch, size>& fitted) noexcept {
        transpose_sub_blocks<Arch, size>(values, x_, 1);
        transpose_sub_blocks<Arch, size>(weights, w_, 1);
        Batch most(0.0f);
        for (std::size_t i = 0; i < size; ++i) most = xsimd::select(most > x_[i], most, x_[i]);
        const auto negligible = most < Batch(k_negligible);
        round(find_inverse(most));
        descend();
        for (std::size_t i = 0; i < size; ++i) {
            const auto code = xsimd::select(negligible, Batch(0.0f), code_[i]);
            xsimd::batch_cast<std::int32_t>(code).store_aligned(fitted.codes[i]);
        }
        const Batch zero(0.0f);
        const Batch scale = xsimd::select(sum_l2_ > zero, quotient<Arch>(sum_xl_, sum_l2_), zero);
        halves_of<Arch>(xsimd::select(negligible, zero, scale)).store_aligned(fitted.scale);
    }

private:
    /// ggml's nearest_int of anything, as a float.
    static XSIMD_INLINE Batch nearest(Batch value) noexcept {
        const Integers sum = bits_of<Arch>(value + Batch(k_magic));
        return xsimd::batch_cast<float>((sum & Integers(0x007fffff)) - Integers(0x00400000));
    }

    static XSIMD_INLINE Batch nearest_code(Batch value) noexcept {
        return xsimd::min(nearest(value), Batch(largest));
    }

    /// Codes are stored as bytes, and negative ones wrap.
    static XSIMD_INLINE Batch wrap(Batch code) noexcept {
        return xsimd::batch_cast<float>(xsimd::batch_cast<std::int32_t>(code) & Integers(255));
    }

    /// The least weighted squared error among a few inverses about largest / most.
    XSIMD_INLINE Batch find_inverse(Batch most) const noexcept {
        Batch inverse = quotient<Arch>(Batch(largest), most);
        Batch least(0.0f);
        const Batch scale = quotient<Arch>(Batch(1.0f), inverse);
        for (std::size_t i = 0; i < size; ++i) {
            const Batch off = x_[i] - scale * wrap(nearest(inverse * x_[i]));
            least = least + w_[i] * off * off;
        }
        for (int step = -4; step <= 4; ++step) {
            if (step == 0) continue;
            const Batch tried =
                quotient<Arch>(Batch(0.1f * static_cast<float>(step) + largest), most);
            const Batch unit = quotient<Arch>(Batch(1.0f), tried);
            Batch error(0.0f);
            for (std::size_t i = 0; i < size; ++i) {
                const Batch off = x_[i] - unit * nearest_code(tried * x_[i]);
                error = error + w_[i] * off * off;
            }
            const auto better = error < least;
            least = xsimd::select(better, error, least);
            inverse = xsimd::select(better, tried, inverse);
        }
        return inverse;
    }

    XSIMD_INLINE void round(Batch inverse) noexcept {
        Batch xl(0.0f), l2(0.0f);
        for (std::size_t i = 0; i < size; ++i) {
            const Batch code = nearest_code(inverse * x_[i]);
            xl = xl + w_[i] * x_[i] * code;
            l2 = l2 + w_[i] * code * code;
            code_[i] = wrap(code);
        }
        sum_xl_ = xl;
        sum_l2_ = l2;
    }

    /// Move one code at a time to where it fits all the others best. A lane that changes nothing
    /// in a pass changes nothing in the next ones either, so that all may go on together.
    XSIMD_INLINE void descend() noexcept {
        const Batch zero(0.0f);
        for (int pass = 0; pass < 5; ++pass) {
            auto changed = zero != zero;
            for (std::size_t i = 0; i < size; ++i) {
                const Batch wx = w_[i] * x_[i];
                const Batch other_xl = sum_xl_ - wx * code_[i];
                const Batch other_l2 = sum_l2_ - w_[i] * code_[i] * code_[i];
                const Batch code = nearest_code(quotient<Arch>(x_[i] * other_l2, other_xl));
                const Batch xl = other_xl + wx * code;
                const Batch l2 = other_l2 + w_[i] * code * code;
                const auto better = (other_xl > zero) & (other_l2 > zero) & (code != code_[i]) &
                                    (xl * xl * sum_l2_ > sum_xl_ * sum_xl_ * l2);
                code_[i] = xsimd::select(better, wrap(code), code_[i]);
                sum_xl_ = xsimd::select(better, xl, sum_xl_);
                sum_l2_ = xsimd::select(better, l2, sum_l2_);
                changed = changed | better;
            }
            if (xsimd::none(changed)) break;
        }
    }

    Batch x_[size], w_[size], code_[size];
    Batch sum_xl_, sum_l2_;
};

}  // namespace phiquant::kernels
