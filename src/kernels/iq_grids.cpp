// Which points of a lattice are candidates for a word that is not on it; the rule is ggml's.
#include "kernels/iq_grids.hpp"

#include <array>
#include <cstring>
#include <span>
#include <vector>

#include "kernels/iq_points.hpp"

namespace phiquant::kernels {
namespace {

/// What a lattice is made of.
struct Lattice {
    std::span<const std::uint16_t> points;
    unsigned values, levels, bits;
    unsigned shells;  ///< how many of the nearest distances count as near
};

Lattice lattice_of(GridName name) noexcept {
    switch (name) {
        case GridName::iq2_xxs:
            return {points::iq2_xxs, 8, 3, 2, 2};
        case GridName::iq2_xs:
            return {points::iq2_xs, 8, 3, 2, 2};
        case GridName::iq2_s:
            return {points::iq2_s, 8, 3, 2, 1};
        case GridName::iq1:
            return {points::iq1, 8, 3, 2, 3};
        case GridName::iq3_xxs:
            return {points::iq3_xxs, 4, 8, 3, 2};
        case GridName::iq3_s:
            break;
    }
    return {points::iq3_s, 4, 8, 3, 3};
}

class BuiltGrid {
public:
    explicit BuiltGrid(const Lattice& lattice) : lattice_(lattice) {
        std::size_t words = 1;
        for (unsigned i = 0; i < lattice.values; ++i) words *= lattice.levels;
        places_.resize(words);
        for (std::size_t j = 0; j < lattice.points.size(); ++j) {
            std::size_t number = 0;
            for (unsigned i = lattice.values; i-- > 0;)
                number = number * lattice.levels + level(j, i);
            point_numbers_.push_back(number);
        }
        measure_halves();
        for (std::size_t word = 0; word < words; ++word) add_word(word);
        // After all else, as these words have no candidates.
        for (std::size_t j = 0; j < lattice.points.size(); ++j) {
            places_[point_numbers_[j]] = {packed(j), 0, static_cast<std::uint16_t>(j)};
        }
        aligned_.resize(candidates_.size() / k_candidates_together);
        std::memcpy(aligned_.data(), candidates_.data(),
                    candidates_.size() * sizeof(std::uint32_t));
        table_ = {places_.data(), aligned_.front().words, indices_.data()};
        candidates_ = {};
    }

    const GridTable& table() const noexcept { return table_; }

private:
    unsigned level(std::size_t point, unsigned value) const {
        return (lattice_.points[point] >> (value * lattice_.bits)) & ((1u << lattice_.bits) - 1);
    }

    std::uint32_t packed(std::size_t point) const {
        const unsigned stride = lattice_.levels == 3 ? 4 : 8;
        std::uint32_t word = 0;
        for (unsigned i = 0; i < lattice_.values; ++i) {
            word |= (level(point, i) + stride * (i % (16 / stride))) << (4 * i);
        }
        return word;
    }

    // Squared distances of half words, so that a whole one is a sum of two. Levels l stand for
    // 2l + 1, hence the factor 4, which no comparison needs.
    void measure_halves() {
        for (unsigned i = 0; i < lattice_.values / 2; ++i) half_ *= lattice_.levels;
        distances_.resize(half_ * half_);
        for (std::size_t a = 0; a < half_; ++a) {
            for (std::size_t b = 0; b < half_; ++b) {
                std::size_t left = a, right = b;
                int sum = 0;
                for (unsigned i = 0; i < lattice_.values / 2; ++i) {
                    const int difference = static_cast<int>(left % lattice_.levels) -
                                           static_cast<int>(right % lattice_.levels);
                    sum += difference * difference;
                    left /= lattice_.levels;
                    right /= lattice_.levels;
                }
                distances_[a * half_ + b] = static_cast<std::uint16_t>(sum);
            }
        }
    }

    void add_word(std::size_t word) {
        const std::size_t points = lattice_.points.size();
        const std::uint16_t* low = &distances_[word % half_ * half_];
        const std::uint16_t* high = &distances_[word / half_ * half_];
        std::array<bool, 4 * 49 + 1> present{};
        from_.resize(points);
        for (std::size_t j = 0; j < points; ++j) {
            from_[j] = static_cast<std::uint16_t>(low[point_numbers_[j] % half_] +
                                                  high[point_numbers_[j] / half_]);
            present[from_[j]] = true;
        }
        if (present[0]) return;  // on the grid
        const std::size_t first = candidates_.size();
        unsigned shells = 0;
        for (std::size_t distance = 0; distance < present.size() && shells < lattice_.shells;
             ++distance) {
            if (!present[distance]) continue;
            ++shells;
            for (std::size_t j = 0; j < points; ++j) {
                if (from_[j] != distance) continue;
                candidates_.push_back(packed(j));
                indices_.push_back(static_cast<std::uint16_t>(j));
            }
        }
        const std::size_t count = candidates_.size() - first;
        while (candidates_.size() % k_candidates_together != 0) {
            candidates_.push_back(candidates_.back());
            indices_.push_back(indices_.back());
        }
        places_[word] = {static_cast<std::uint32_t>(first), static_cast<std::uint16_t>(count), 0};
    }

    Lattice lattice_;
    std::size_t half_ = 1;
    std::vector<GridPlace> places_;
    std::vector<std::size_t> point_numbers_;
    std::vector<std::uint16_t> distances_, from_;
    std::vector<std::uint32_t> candidates_;
    struct alignas(64) Group {
        std::uint32_t words[k_candidates_together];
    };
    std::vector<Group> aligned_;  // for the widest loads
    std::vector<std::uint16_t> indices_;
    GridTable table_{};
};

template <GridName name>
const GridTable& built() noexcept {
    static const BuiltGrid grid(lattice_of(name));
    return grid.table();
}

}  // namespace

const GridTable& grid_table(GridName name) noexcept {
    switch (name) {
        case GridName::iq2_xxs:
            return built<GridName::iq2_xxs>();
        case GridName::iq2_xs:
            return built<GridName::iq2_xs>();
        case GridName::iq2_s:
            return built<GridName::iq2_s>();
        case GridName::iq1:
            return built<GridName::iq1>();
        case GridName::iq3_xxs:
            return built<GridName::iq3_xxs>();
        case GridName::iq3_s:
            break;
    }
    return built<GridName::iq3_s>();
}

const std::uint16_t* grid_points(GridName name) noexcept { return lattice_of(name).points.data(); }

}  // namespace phiquant::kernels
