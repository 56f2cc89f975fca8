// How far decoded values are from the original ones: sums that do not depend on the instruction
// set.
#pragma once

#include "kernels/simd.hpp"
#include "kernels/table.hpp"

namespace phiquant::kernels {

/// Sixteen float sums, one for every sixteenth value, over a short run; then doubles in order.
/// Every instruction set holds the same sixteen, in as many registers as it takes.
template <class Arch>
void squared_sums(const float* values, const float* decoded, std::uint64_t count, double* error,
                  double* signal) noexcept {
    constexpr std::uint64_t k_lanes = 16, k_run = 1024;
    constexpr std::size_t k_width = F32<Arch>::size, k_parts = k_lanes / k_width;
    double total_error = 0, total_signal = 0;
    for (std::uint64_t begin = 0; begin < count; begin += k_run) {
        const std::uint64_t end = begin + k_run < count ? begin + k_run : count;
        F32<Arch> errors[k_parts], signals[k_parts];
        for (std::size_t part = 0; part < k_parts; ++part) {
            errors[part] = F32<Arch>(0.0f);
            signals[part] = F32<Arch>(0.0f);
        }
        std::uint64_t i = begin;
        for (; i + k_lanes <= end; i += k_lanes) {
            for (std::size_t part = 0; part < k_parts; ++part) {
                const auto value = F32<Arch>::load_unaligned(values + i + part * k_width);
                const auto difference =
                    value - F32<Arch>::load_unaligned(decoded + i + part * k_width);
                errors[part] = errors[part] + difference * difference;
                signals[part] = signals[part] + value * value;
            }
        }
        alignas(k_alignment) float error_lanes[k_lanes], signal_lanes[k_lanes];
        for (std::size_t part = 0; part < k_parts; ++part) {
            errors[part].store_aligned(error_lanes + part * k_width);
            signals[part].store_aligned(signal_lanes + part * k_width);
        }
        for (; i < end; ++i) {
            const float difference = values[i] - decoded[i];
            error_lanes[0] += difference * difference;
            signal_lanes[0] += values[i] * values[i];
        }
        for (std::uint64_t lane = 0; lane < k_lanes; ++lane) {
            total_error += static_cast<double>(error_lanes[lane]);
            total_signal += static_cast<double>(signal_lanes[lane]);
        }
    }
    *error = total_error;
    *signal = total_signal;
}

}  // namespace phiquant::kernels
