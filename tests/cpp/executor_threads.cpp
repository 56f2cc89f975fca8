// The executor under ThreadSanitizer: several targets, many threads, progress, cancellation, errors
// and two runs at once. Prints what it did; any race, and any broken promise, ends it with an
// error.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "codecs/planes.hpp"
#include "pipeline/executor.hpp"

namespace {

using namespace phiquant;
using namespace phiquant::pipeline;
namespace fs = std::filesystem;

constexpr std::uint64_t k_rows = 1040, k_columns = 512, k_tensors = 6;

[[noreturn]] void fail(const std::string& what) {
    std::cerr << "broken: " << what << '\n';
    std::exit(1);
}

void require(bool holds, const char* what) {
    if (!holds) fail(what);
}

std::string contents(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// Tensors of float32, one after the other.
fs::path write_source(const fs::path& folder, const std::string& name, bool with_nan) {
    std::vector<float> values(k_tensors * k_rows * k_columns);
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = std::sin(static_cast<float>(i % 100003)) * 0.1f;
    }
    if (with_nan) values[values.size() / 2] = std::numeric_limits<float>::quiet_NaN();
    std::ofstream(folder / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    return folder / name;
}

/// A file of blocks, and a folder with a file of planes by rows and one of a plane by columns.
Plan plan_of(const fs::path& source, const fs::path& out) {
    Plan plan;
    plan.sources.push_back({source.string(), io::SourceFile(source.string()).identity()});
    plan.folders.push_back({(out / "folder").string(), {"planes", "turned"}});
    std::uint64_t at[3] = {64, 0, 0};
    const char* const codecs[3] = {"q8_0", "int4_asym_g32", "f16,layout=transposed"};
    for (std::uint64_t i = 0; i < k_tensors; ++i) {
        PlannedTensor tensor{"tensor" + std::to_string(i), k_columns, {}, {}};
        SourcePart part{};
        part.codec = codecs::find("f32");
        part.rows = k_rows;
        part.planes = {{0, i * k_rows * k_columns * sizeof(float)}};
        tensor.parts.push_back(part);
        for (std::uint32_t file = 0; file < 3; ++file) {
            PlannedOutput output{};
            output.codec = codecs::find(codecs[file]);
            output.rows = k_rows;
            for (const auto& plane : codecs::planes_of(*output.codec, k_rows, k_columns)) {
                output.planes.push_back({file, at[file]});
                at[file] += plane.bytes();
            }
            tensor.outputs.push_back(std::move(output));
        }
        plan.tensors.push_back(std::move(tensor));
    }
    plan.files.push_back({(out / "blocks").string(), at[0], {{0, std::string(64, 'h')}}});
    plan.files.push_back({"planes", at[1], {}, 0});
    plan.files.push_back({"turned", at[2], {}, 0});
    return plan;
}

struct Results {
    std::string blocks, planes, turned;
    bool operator==(const Results&) const = default;
};

Results results_in(const fs::path& out) {
    return {contents(out / "blocks"), contents(out / "folder" / "planes"),
            contents(out / "folder" / "turned")};
}

fs::path fresh(const fs::path& folder, const std::string& name) {
    fs::remove_all(folder / name);
    fs::create_directory(folder / name);
    return folder / name;
}

/// Run, and say whether an error of this kind ended it; nothing may be left then.
void expect_error(const Plan& plan, const Watch& watch, ErrorKind kind, const fs::path& out) {
    try {
        execute(plan, {8, false}, watch);
    } catch (const Error& error) {
        require(error.kind() == kind, error.what());
        require(fs::is_empty(out), "a run that failed left something behind");
        return;
    }
    fail("a run that should have failed did not");
}

}  // namespace

int main(int count, char** arguments) {
    require(count == 2, "usage: executor_threads EMPTY_FOLDER");
    const fs::path folder = arguments[1];
    const fs::path source = write_source(folder, "source", false);

    const fs::path alone = fresh(folder, "alone");
    execute(plan_of(source, alone), {1, false}, {});
    const Results expected = results_in(alone);
    require(expected.blocks.size() > 64 && !expected.turned.empty(), "nothing was written");

    for (const unsigned threads : {2u, 8u}) {
        const fs::path out = fresh(folder, "many");
        std::uint64_t last = 0, inspected = 0;
        const Report report =
            execute(plan_of(source, out), {threads, false},
                    {[&](std::uint64_t done) { last = std::max(last, done); },
                     [&](const std::vector<std::string>& staged) { inspected = staged.size(); }});
        require(results_in(out) == expected, "threads changed the result");
        require(inspected == 3 && report.tensors.size() == k_tensors, "not all was inspected");
    }
    std::cout << "1, 2 and 8 threads: the same bytes\n";

    const fs::path stopped = fresh(folder, "stopped");
    const Plan plan = plan_of(source, stopped);
    for (int calls = 1; calls <= 3; ++calls) {
        int left = calls;
        const auto stop = [&](std::uint64_t) {
            if (--left == 0) throw Error(ErrorKind::cancelled, "stop");
        };
        try {
            execute(plan, {8, false}, {stop, {}});
            // It ended before it was asked so often.
            fresh(folder, "stopped");
        } catch (const Error& error) {
            require(error.kind() == ErrorKind::cancelled, error.what());
            require(fs::is_empty(stopped), "a stopped run left something behind");
        }
    }
    expect_error(
        plan,
        {{}, [](const std::vector<std::string>&) { throw Error(ErrorKind::cancelled, "stop"); }},
        ErrorKind::cancelled, stopped);
    std::cout << "stopped at progress and at inspection: nothing is left\n";

    expect_error(plan_of(write_source(folder, "damaged", true), stopped), {}, ErrorKind::value,
                 stopped);
    std::cout << "a NaN that one worker finds stops all\n";

    const fs::path one = fresh(folder, "one"), other = fresh(folder, "other");
    std::thread beside([&] { execute(plan_of(source, one), {4, false}, {}); });
    execute(plan_of(source, other), {4, false}, {});
    beside.join();
    require(results_in(one) == expected && results_in(other) == expected,
            "runs disturb each other");

    std::thread writer([&] { execute(plan_of(source, one), {4, true}, {}); });
    execute(plan_of(source, one), {4, true}, {});
    writer.join();
    require(results_in(one) == expected, "two writers made a mixture");
    require(std::distance(fs::directory_iterator(one), {}) == 2, "staged files were left");
    std::cout << "two runs at once, into two folders and into one: whole results\n";
    return 0;
}
