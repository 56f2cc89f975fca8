// Bounds on what a header may ask for, and the search for names that stand twice in it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace phiquant::formats {

// Far above every real model (the largest mixture of experts has some 100 000 tensors), and low
// enough that a hostile header of legal length cannot fill the memory.
inline constexpr std::size_t k_most_tensors = std::size_t{1} << 20;
inline constexpr std::size_t k_most_metadata_keys = std::size_t{1} << 16;
/// NumPy before 2.0 stops at 32 dimensions.
inline constexpr std::size_t k_most_dimensions = 32;

/// A name that two of `items` share, or nothing. Sorts instead of hashing: std::hash has known
/// collisions, which would make a hostile header take quadratic time.
template <class Item, class NameOf>
[[nodiscard]] std::optional<std::string> find_duplicate(const std::vector<Item>& items,
                                                        NameOf name_of) {
    std::vector<std::string_view> names;
    names.reserve(items.size());
    for (const auto& item : items) names.emplace_back(name_of(item));
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice == names.end()) return std::nullopt;
    return std::string(*twice);
}

}  // namespace phiquant::formats
