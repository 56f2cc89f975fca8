// The best split of sorted values into three levels (iq1_s, iq1_m), one lane a sub-block.
#pragma once

#include "kernels/sorting.hpp"

namespace phiquant::kernels {

// Levels are -1, 0, 1 plus or minus an eighth: `up` and `down`.
static constexpr float k_iq1_up[3] = {-0.875f, 0.125f, 1.125f};
static constexpr float k_iq1_down[3] = {-1.125f, -0.125f, 0.875f};

/// The best split of each lane: values before `first` get the lowest level, from `second` on the
/// highest. `shift`: which of the levels are used; bit 1 the first half of the sub-block's values,
/// bit 0 the second half, set for `down` (iq1_s has one bit, 0).
template <class Arch>
struct Split {
    F32<Arch> scale;
    F32<Arch> score{-__FLT_MAX__};
    I32<Arch> first{-1}, second{-1}, shift{0};

    /// Take a split where it is better: Σ w·x·q squared over Σ w·q², by the reference's comparison.
    XSIMD_INLINE void consider(F32<Arch> qx, F32<Arch> q2, std::size_t i1, std::size_t i2,
                               int shifted) noexcept {
        const auto better = (q2 > F32<Arch>(0.0f)) & (qx * qx > score * q2);
        if (!xsimd::any(better)) return;
        const auto chosen = xsimd::batch_bool_cast<std::int32_t>(better);
        const F32<Arch> here = quotient<Arch>(qx, q2);
        scale = xsimd::select(better, here, scale);
        score = xsimd::select(better, here * qx, score);
        first = xsimd::select(chosen, I32<Arch>(static_cast<std::int32_t>(i1)), first);
        second = xsimd::select(chosen, I32<Arch>(static_cast<std::int32_t>(i2)), second);
        shift = xsimd::select(chosen, I32<Arch>(shifted), shift);
    }
};

/// iq1_s: one shift for all 32 values.
template <class Arch>
XSIMD_INLINE void search_splits(const Sortable<Arch, 32>& sorted, Split<Arch>& split) noexcept {
    using Batch = F32<Arch>;
    constexpr std::size_t size = 32;
    Batch sum_x[size + 1], sum_w[size + 1];
    sum_x[0] = sum_w[0] = Batch(0.0f);
    for (std::size_t j = 0; j < size; ++j) {
        sum_x[j + 1] = sum_x[j] + sorted.weight[j] * sorted.value[j];
        sum_w[j + 1] = sum_w[j] + sorted.weight[j];
    }
    // The highest level's parts, which depend on the second end only.
    struct Tail {
        Batch x_up, x_down, w_up, w_down;
    } tails[size + 1];
    const Batch up0(k_iq1_up[0]), up1(k_iq1_up[1]), up2(k_iq1_up[2]);
    const Batch down0(k_iq1_down[0]), down2(k_iq1_down[2]);
    for (std::size_t i = 0; i <= size; ++i) {
        const Batch x = sum_x[size] - sum_x[i], w = sum_w[size] - sum_w[i];
        tails[i] = {x * up2, x * down2, w * up2 * up2, w * down2 * down2};
    }
    for (std::size_t i1 = 0; i1 <= size; ++i1) {
        const Batch x_up = sum_x[i1] * up0, x_down = sum_x[i1] * down0;
        const Batch w_up = sum_w[i1] * up0 * up0, w_down = sum_w[i1] * down0 * down0;
        for (std::size_t i2 = i1; i2 <= size; ++i2) {
            // The middle levels differ in sign only.
            const Batch x_middle = (sum_x[i2] - sum_x[i1]) * up1;
            const Batch w_middle = (sum_w[i2] - sum_w[i1]) * up1 * up1;
            const Tail& tail = tails[i2];
            split.consider(x_up + x_middle + tail.x_up, w_up + w_middle + tail.w_up, i1, i2, 0);
            split.consider(x_down - x_middle + tail.x_down, w_down + w_middle + tail.w_down, i1, i2,
                           1);
        }
    }
}

/// iq1_m: a shift for each half of 16 values. In the reference's own terms: as neighbouring levels
/// are 1 apart, the three sums of a half are its whole sum times the highest level, less the sums
/// up to both ends.
template <class Arch>
XSIMD_INLINE void search_splits(const Sortable<Arch, 16>& sorted, Split<Arch>& split) noexcept {
    using Batch = F32<Arch>;
    constexpr std::size_t size = 16;
    Batch sum_x[2][size + 1], sum_w[2][size + 1];
    for (std::size_t h = 0; h < 2; ++h) sum_x[h][0] = sum_w[h][0] = Batch(0.0f);
    for (std::size_t j = 0; j < size; ++j) {
        const auto second = xsimd::batch_bool_cast<float>(sorted.place[j] >= I32<Arch>(size / 2));
        const Batch wx = sorted.weight[j] * sorted.value[j];
        for (std::size_t h = 0; h < 2; ++h) {
            const Batch x = sum_x[h][j] + wx, w = sum_w[h][j] + sorted.weight[j];
            sum_x[h][j + 1] = h == 0 ? xsimd::select(second, sum_x[h][j], x)
                                     : xsimd::select(second, x, sum_x[h][j]);
            sum_w[h][j + 1] = h == 0 ? xsimd::select(second, sum_w[h][j], w)
                                     : xsimd::select(second, w, sum_w[h][j]);
        }
    }
    constexpr auto square = [](float x) { return x * x; };
    const float* const levels[2] = {k_iq1_up, k_iq1_down};
    Batch total_x[2][2], head_w[2][2], tail_w[2][2][size + 1];
    for (std::size_t s = 0; s < 2; ++s) {
        const Batch high(levels[s][2]);
        const Batch step(square(levels[s][1]) - square(levels[s][2]));
        for (std::size_t h = 0; h < 2; ++h) {
            total_x[s][h] = sum_x[h][size] * high;
            head_w[s][h] = sum_w[h][size] * high * high;
            for (std::size_t i = 0; i <= size; ++i) tail_w[s][h][i] = sum_w[h][i] * step;
        }
    }
    for (std::size_t i1 = 0; i1 <= size; ++i1) {
        Batch w1[2][2];
        for (std::size_t s = 0; s < 2; ++s) {
            const Batch step(square(levels[s][0]) - square(levels[s][1]));
            for (std::size_t h = 0; h < 2; ++h) w1[s][h] = head_w[s][h] + sum_w[h][i1] * step;
        }
        for (std::size_t i2 = i1; i2 <= size; ++i2) {
            Batch qx[2][2], q2[2][2];
            for (std::size_t h = 0; h < 2; ++h) {
                const Batch x = sum_x[h][i1] + sum_x[h][i2];
                for (std::size_t s = 0; s < 2; ++s) {
                    qx[s][h] = total_x[s][h] - x;
                    q2[s][h] = w1[s][h] + tail_w[s][h][i2];
                }
            }
            for (int shift = 0; shift < 4; ++shift) {
                const int a = shift >> 1, b = shift & 1;
                split.consider(qx[a][0] + qx[b][1], q2[a][0] + q2[b][1], i1, i2, shift);
            }
        }
    }
}

}  // namespace phiquant::kernels
