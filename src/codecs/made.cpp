// Names of affine codecs, read and written.
#include "codecs/made.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <string>

namespace phiquant::codecs {
namespace {

using kernels::AffineScale;

template <class Value>
struct Word {
    std::string_view text;
    Value value;
};

constexpr std::array k_rules{
    Word<Rule>{"ort", Rule::ort},   Word<Rule>{"qdq", Rule::qdq},
    Word<Rule>{"nncf", Rule::nncf}, Word<Rule>{"mlx", Rule::mlx},
    Word<Rule>{"ct", Rule::ct},     Word<Rule>{"portable", Rule::portable}};
constexpr std::array k_scales{Word<AffineScale>{"f32", AffineScale::f32},
                              Word<AffineScale>{"f16", AffineScale::f16},
                              Word<AffineScale>{"bf16", AffineScale::bf16}};
constexpr std::array k_layouts{
    Word<Layout>{"rows", Layout::rows},   Word<Layout>{"openvino", Layout::openvino},
    Word<Layout>{"mlx", Layout::mlx},     Word<Layout>{"packed", Layout::packed},
    Word<Layout>{"bytes", Layout::bytes}, Word<Layout>{"transposed", Layout::transposed},
    Word<Layout>{"gptq", Layout::gptq},   Word<Layout>{"gptq_v1", Layout::gptq_v1},
    Word<Layout>{"awq", Layout::awq}};
constexpr std::array k_groups{Word<std::uint32_t>{"g16", 16},   Word<std::uint32_t>{"g32", 32},
                              Word<std::uint32_t>{"g64", 64},   Word<std::uint32_t>{"g128", 128},
                              Word<std::uint32_t>{"g256", 256}, Word<std::uint32_t>{"channel", 0}};

template <class Words>
auto value_of(const Words& words, std::string_view text)
    -> std::optional<decltype(words.front().value)> {
    for (const auto& word : words) {
        if (word.text == text) return word.value;
    }
    return std::nullopt;
}

template <class Words, class Value>
std::string_view text_of(const Words& words, Value value) {
    for (const auto& word : words) {
        if (word.value == value) return word.text;
    }
    return {};
}

// What a rule's own tool stores.
AffineScale default_scale(Rule rule) {
    switch (rule) {
        case Rule::ort:
        case Rule::qdq:
            return AffineScale::f32;
        case Rule::nncf:
        case Rule::portable:
            return AffineScale::f16;
        default:
            return AffineScale::bf16;
    }
}

// GPTQ's and AWQ's scales are halves, whosever rule has made them.
AffineScale default_scale(Rule rule, Layout layout) {
    const bool halves =
        layout == Layout::gptq || layout == Layout::gptq_v1 || layout == Layout::awq;
    return halves ? AffineScale::f16 : default_scale(rule);
}

Layout default_layout(Rule rule) {
    switch (rule) {
        case Rule::nncf:
            return Layout::openvino;
        case Rule::mlx:
            return Layout::mlx;
        case Rule::ct:
            return Layout::packed;
        default:
            return Layout::rows;
    }
}

// Everything up to `mark`, which is taken off the text with it; all of it where there is none.
std::string_view take_until(std::string_view& text, char mark) {
    const auto at = text.find(mark);
    const std::string_view taken = text.substr(0, at);
    text = at == std::string_view::npos ? std::string_view() : text.substr(at + 1);
    return taken;
}

struct Parsed {
    std::string name;
    Codec codec;
};

std::optional<Parsed> parse_float(std::string_view base, std::string_view options) {
    const bool transposed = options == "layout=transposed";
    const bool nncf = base == "bf16" && options == "rule=nncf";
    if (!transposed && !nncf) return std::nullopt;
    for (const Codec& codec : all()) {
        if (codec.grid != Grid::floating || codec.name != base) continue;
        Parsed parsed{std::string(base) + "," + std::string(options), codec};
        parsed.codec.ggml_type = k_no_ggml_type;
        if (transposed) {
            parsed.codec.layout = Layout::transposed;
        } else {
            parsed.codec.rule = Rule::nncf;
            parsed.codec.kernel = &kernels::Table::bf16_nncf;
        }
        return parsed;
    }
    return std::nullopt;
}

// mlx's small floats. ggml has types of the same names, in blocks.
std::optional<Parsed> parse_mlx_float(std::string_view base, std::string_view options) {
    struct Mode {
        std::string_view name;
        unsigned bits;
        std::uint32_t group;
        Levels levels;
    };
    constexpr std::array modes{Mode{"mxfp4", 4, 32, Levels::e2m1},
                               Mode{"mxfp8", 8, 32, Levels::e4m3},
                               Mode{"nvfp4", 4, 16, Levels::e2m1}};
    if (take_until(options, ',') != "layout=mlx") return std::nullopt;
    AffineScale scale = AffineScale::bf16;
    if (!options.empty()) {
        if (take_until(options, '=') != "scales") return std::nullopt;
        const auto found = value_of(k_scales, options);
        if (!found) return std::nullopt;
        scale = *found;
    }
    for (const Mode& mode : modes) {
        if (mode.name != base) continue;
        std::string name = std::string(base) + ",layout=mlx";
        if (scale != AffineScale::bf16) name += ",scales=" + std::string(text_of(k_scales, scale));
        // Beyond it, mlx's comparisons of bfloat16 no longer tell the largest codes apart.
        return Parsed{std::move(name),
                      Codec{{},
                            Grid::affine,
                            Rule::mlx,
                            1,
                            mode.group,
                            0,
                            k_no_ggml_type,
                            65504.0f,
                            nullptr,
                            false,
                            Layout::mlx,
                            Affine{mode.bits, mode.group, true, scale, mode.levels}}};
    }
    return std::nullopt;
}

// A positive float32 as its eight digits of bits.
std::optional<float> float_of_digits(std::string_view digits) {
    std::uint32_t bits = 0;
    const char* const end = digits.data() + digits.size();
    const auto [behind, error] = std::from_chars(digits.data(), end, bits, 16);
    if (digits.size() != 8 || error != std::errc() || behind != end) return std::nullopt;
    const float value = __builtin_bit_cast(float, bits);
    if (!(value > 0.0f && value < std::numeric_limits<float>::infinity())) return std::nullopt;
    return value;
}

std::string digits_of(float value) {
    char digits[9];
    std::snprintf(digits, sizeof digits, "%08x", __builtin_bit_cast(std::uint32_t, value));
    return digits;
}

// compressed-tensors' small floats: of 8 bits with a scale a row, of 4 with powers of two, or with
// 8-bit floats under a scale of the whole tensor.
std::optional<Parsed> parse_ct_float(std::string_view base, std::string_view options) {
    struct Kind {
        std::string_view name, written;
        unsigned bits;
        std::uint32_t group;
        Levels levels;
    };
    constexpr std::array kinds{Kind{"fp8_channel", "fp8_channel", 8, 0, Levels::e4m3},
                               Kind{"mxfp4", "mxfp4,layout=packed", 4, 32, Levels::e2m1},
                               Kind{"nvfp4", "nvfp4,layout=packed", 4, 16, Levels::e2m1}};
    const auto* const kind = std::ranges::find(kinds, base, &Kind::name);
    if (kind == kinds.end()) return std::nullopt;
    if (kind->written != base && take_until(options, ',') != "layout=packed") return std::nullopt;
    std::optional<AffineScale> scale;
    std::optional<float> global;
    while (!options.empty()) {
        std::string_view option = take_until(options, ',');
        const std::string_view key = take_until(option, '=');
        const bool known =
            (key == "scales" && !scale && (scale = value_of(k_scales, option))) ||
            (key == "global" && kind->group == 16 && !global && (global = float_of_digits(option)));
        if (!known) return std::nullopt;
    }
    const AffineScale type = scale.value_or(default_scale(Rule::ct));
    std::string name(kind->written);
    if (type != default_scale(Rule::ct)) name += ",scales=" + std::string(text_of(k_scales, type));
    if (global.value_or(1.0f) != 1.0f) name += ",global=" + digits_of(*global);
    const float largest = type == AffineScale::f16 ? 65504.0f : 0x1p126f;
    const Affine affine{kind->bits, kind->group, true, type, kind->levels, global.value_or(1.0f)};
    return Parsed{std::move(name), Codec{{},
                                         Grid::affine,
                                         Rule::ct,
                                         1,
                                         kind->group,
                                         0,
                                         k_no_ggml_type,
                                         largest,
                                         nullptr,
                                         false,
                                         Layout::packed,
                                         affine}};
}

// OpenVINO's, as NNCF makes them: NF4 with a scale a group, and 4 or 8 bits with powers of two.
std::optional<Parsed> parse_nncf_float(std::string_view base, std::string_view options) {
    std::uint32_t group = 32;
    unsigned bits = 4;
    Levels levels = Levels::e2m1;
    std::string name(base);
    if (base.starts_with("nf4_")) {
        const auto found = value_of(k_groups, base.substr(4));
        if (!found || !options.empty()) return std::nullopt;
        group = *found;
        levels = Levels::nf4;
    } else if ((base == "mxfp4" || base == "mxfp8") && options == "layout=openvino") {
        name += ",layout=openvino";
        if (base == "mxfp8") {
            bits = 8;
            levels = Levels::e4m3;
        }
    } else {
        return std::nullopt;
    }
    // OpenVINO decompresses to halves.
    return Parsed{std::move(name), Codec{{},
                                         Grid::affine,
                                         Rule::nncf,
                                         1,
                                         group,
                                         0,
                                         k_no_ggml_type,
                                         65504.0f,
                                         nullptr,
                                         false,
                                         Layout::openvino,
                                         Affine{bits, group, true, AffineScale::f16, levels}}};
}

std::optional<Parsed> parse_affine(std::string_view base, std::string_view options) {
    std::string_view rest = base.substr(3);
    const std::string_view bits_text = take_until(rest, '_'), kind = take_until(rest, '_');
    Affine affine{};
    const auto [end, error] =
        std::from_chars(bits_text.data(), bits_text.data() + bits_text.size(), affine.bits);
    const bool known_bits = affine.bits >= 2 && affine.bits <= 8 && affine.bits != 7;
    if (error != std::errc() || end != bits_text.data() + bits_text.size() || !known_bits ||
        bits_text.size() != 1 || (kind != "sym" && kind != "asym")) {
        return std::nullopt;
    }
    affine.symmetric = kind == "sym";
    const auto group = value_of(k_groups, rest);
    if (!group) return std::nullopt;
    affine.group = *group;

    std::optional<Rule> rule;
    std::optional<AffineScale> scale;
    std::optional<Layout> layout;
    while (!options.empty()) {
        std::string_view option = take_until(options, ',');
        const std::string_view key = take_until(option, '=');
        const bool known = (key == "rule" && !rule && (rule = value_of(k_rules, option))) ||
                           (key == "scales" && !scale && (scale = value_of(k_scales, option))) ||
                           (key == "layout" && !layout && (layout = value_of(k_layouts, option)));
        if (!known) return std::nullopt;
    }
    const Rule by = rule.value_or(Rule::ort);
    const Layout laid = layout.value_or(default_layout(by));
    affine.scale = scale.value_or(default_scale(by, laid));
    // Biases are values, zero points codes: neither layout can hold what the other rule makes; but
    // a portable scale's zero points have biases that halves hold.
    const bool portable = by == Rule::portable;
    if ((by == Rule::mlx) != (laid == Layout::mlx) && !(portable && laid == Layout::mlx)) {
        return std::nullopt;
    }
    const bool group_of_mlx = affine.group == 32 || affine.group == 64 || affine.group == 128;
    if (laid == Layout::mlx && (affine.symmetric || !group_of_mlx)) return std::nullopt;
    // Products of a scale's 7 bits and a code's are a float16's 11 at most.
    const bool holds_biases = laid != Layout::mlx || affine.scale != AffineScale::bf16;
    if (portable && (affine.bits > 4 || !holds_biases)) return std::nullopt;
    // Its tool has other grids, too; for those the rule ort is the better one.
    const bool bits_of_qdq = affine.bits == 4 || affine.bits == 8;
    const bool scale_of_qdq = affine.scale != AffineScale::bf16;
    if (by == Rule::qdq && !(affine.symmetric && bits_of_qdq && scale_of_qdq)) return std::nullopt;

    const bool gptq = laid == Layout::gptq || laid == Layout::gptq_v1;
    const bool bits_of_gptq = affine.bits <= 4 || affine.bits == 8;
    if (laid == Layout::bytes && affine.bits != 8) return std::nullopt;
    if ((gptq && !bits_of_gptq) || (laid == Layout::awq && affine.bits != 4)) return std::nullopt;

    std::string name(base);
    if (by != Rule::ort) name += ",rule=" + std::string(text_of(k_rules, by));
    if (affine.scale != default_scale(by, laid)) {
        name += ",scales=" + std::string(text_of(k_scales, affine.scale));
    }
    if (laid != default_layout(by)) name += ",layout=" + std::string(text_of(k_layouts, laid));
    // The largest scale is at most the range over the codes; a range of float32's largest
    // overflows.
    float largest = affine.scale == AffineScale::f16 ? 65504.0f : 0x1p126f;
    // torch computes the range in the scales' type.
    if (by == Rule::ct && affine.scale == AffineScale::f16) largest /= 2;
    // Zero points times scales are halves, too.
    if (portable) largest = 30000.0f;
    return Parsed{std::move(name), Codec{{},
                                         Grid::affine,
                                         by,
                                         1,
                                         affine.group,
                                         0,
                                         k_no_ggml_type,
                                         largest,
                                         nullptr,
                                         false,
                                         laid,
                                         affine}};
}

}  // namespace

const Codec* find_made(std::string_view name) {
    static std::mutex mutex;
    static std::deque<Parsed> made;  // never moves what it holds
    std::string_view rest = name;
    const std::string_view base = take_until(rest, ',');
    std::optional<Parsed> parsed =
        base.starts_with("int") ? parse_affine(base, rest) : parse_float(base, rest);
    if (!parsed) parsed = parse_mlx_float(base, rest);
    if (!parsed) parsed = parse_ct_float(base, rest);
    if (!parsed) parsed = parse_nncf_float(base, rest);
    if (!parsed) return nullptr;
    const std::lock_guard lock(mutex);
    for (const Parsed& known : made) {
        if (known.name == parsed->name) return &known.codec;
    }
    Parsed& kept = made.emplace_back(std::move(*parsed));
    kept.codec.name = kept.name;
    return &kept.codec;
}

kernels::AffineKernel affine_kernel(const kernels::Table& table, const Codec& codec) noexcept {
    // ONNX Runtime's search holds a group at a time, which a whole row is too long for.
    const auto of_groups = [&](kernels::AffineKernel kernel) noexcept {
        if (codec.affine.group == 0) kernel.best = nullptr;
        return kernel;
    };
    switch (codec.rule) {
        case Rule::ort:
            return of_groups(table.affine->ort);
        case Rule::qdq:
            return table.affine->qdq;
        case Rule::nncf:
            switch (codec.affine.levels) {
                case Levels::integers:
                    return table.affine->nncf;
                case Levels::nf4:
                    return table.affine->nncf_nf4;
                case Levels::e2m1:
                    return table.affine->nncf_mxfp4;
                case Levels::e4m3:
                    return table.affine->nncf_mxfp8;
            }
            break;
        case Rule::mlx:
            switch (codec.affine.levels) {
                case Levels::integers:
                    return table.affine->mlx;
                case Levels::e4m3:
                    return table.affine->mxfp8;
                case Levels::e2m1:
                    return codec.affine.group == 16 ? table.affine->nvfp4 : table.affine->mxfp4;
                case Levels::nf4:
                    break;
            }
            break;
        case Rule::ct:
            if (codec.affine.levels == Levels::e4m3) return table.affine->ct_fp8;
            if (codec.affine.levels == Levels::e2m1) {
                return codec.affine.group == 16 ? table.affine->ct_nvfp4 : table.affine->ct_mxfp4;
            }
            return codec.affine.group == 0 ? table.affine->ct_rows : table.affine->ct;
        case Rule::portable:
            return table.affine->portable;
        case Rule::ggml:
            break;
    }
    return {};
}

}  // namespace phiquant::codecs
