// Choice of the instruction set; this file itself is compiled for the baseline.
#include "kernels/dispatch.hpp"

#include <cstdlib>
#include <string>
#include <vector>
#include <xsimd/xsimd.hpp>

#include "base/error.hpp"
#include "kernels/make_table.hpp"

namespace phiquant::kernels {
namespace {

#if defined(__x86_64__) || defined(_M_X64)
// xsimd doesn't ask about VL, which the avx512bw table is compiled with.
bool has_vl() {
#if defined(_MSC_VER)
    return true;  // no processor has BW without it
#else
    return __builtin_cpu_supports("avx512vl") != 0;
#endif
}
#endif

std::vector<const Table*> find_available() {
    std::vector<const Table*> tables;
    const auto has = xsimd::available_architectures();
#if defined(__x86_64__) || defined(_M_X64)
    if (has.has(xsimd::avx512bw{}) && has_vl()) tables.push_back(&table<xsimd::avx512bw>());
    if (has.has(xsimd::avx2{})) tables.push_back(&table<xsimd::avx2>());
#if !defined(_MSC_VER)
    if (has.has(xsimd::sse4_1{})) tables.push_back(&table<xsimd::sse4_1>());
#endif
    if (has.has(xsimd::sse2{})) tables.push_back(&table<xsimd::sse2>());
#elif defined(__aarch64__) || defined(_M_ARM64)
    if (has.has(xsimd::neon64{})) tables.push_back(&table<xsimd::neon64>());
#else
#error "phiquant has kernels for x86-64 and 64-bit ARM only"
#endif
    return tables;
}

const std::vector<const Table*>& tables() {
    static const std::vector<const Table*> found = find_available();
    return found;
}

const Table& choose() {
    const char* forced = std::getenv("PHIQUANT_ARCH");
    if (forced != nullptr && *forced != '\0') return by_name(forced);
    if (tables().empty()) {
        throw Error(ErrorKind::unsupported,
                    "this processor lacks every instruction set that "
                    "phiquant has kernels for");
    }
    return *tables().front();
}

}  // namespace

const Table& active() {
    static const Table& chosen = choose();
    return chosen;
}

std::span<const Table* const> available() { return tables(); }

const Table& by_name(std::string_view name) {
    std::string known;
    for (const Table* candidate : tables()) {
        if (name == candidate->name) return *candidate;
        known += known.empty() ? "" : ", ";
        known += candidate->name;
    }
    throw Error(ErrorKind::usage,
                "no kernels for the instruction set '" + std::string(name) + "' here",
                "Name one of: " + known + " (in PHIQUANT_ARCH, or none for the best).");
}

}  // namespace phiquant::kernels
