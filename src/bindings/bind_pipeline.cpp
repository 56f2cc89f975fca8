// Plans as Python data turned into structs, and their execution.
#include <algorithm>
#include <span>
#include <tuple>

#include "base/checked.hpp"
#include "base/crc32c.hpp"
#include "base/workers.hpp"
#include "bindings/watch.hpp"
#include "codecs/planes.hpp"
#include "io/staged.hpp"
#include "pipeline/executor.hpp"
#include "pipeline/pieces.hpp"
#include "pipeline/stages.hpp"

namespace py = pybind11;

namespace phiquant::bindings {
namespace {

using SourceRow =
    std::tuple<std::string, std::uint64_t, std::uint64_t, std::uint64_t, std::int64_t>;
using PlaneRow = std::pair<std::uint32_t, std::uint64_t>;
using PartRow = std::tuple<std::string, std::uint64_t, std::vector<PlaneRow>>;
// Codec, planes, first row, rows, importance, best, column scale, row scale, scaled in, via.
using OutputRow =
    std::tuple<std::string, std::vector<PlaneRow>, std::uint64_t, std::uint64_t, std::int64_t, bool,
               std::int64_t, std::int64_t, std::string, std::string>;
using TensorRow =
    std::tuple<std::string, std::uint64_t, std::vector<PartRow>, std::vector<OutputRow>>;
using FileRow = std::tuple<std::string, std::uint64_t,
                           std::vector<std::pair<std::uint64_t, py::bytes>>, std::int64_t>;
using FolderRow = std::pair<std::string, std::vector<std::string>>;

const codecs::Codec* codec_or_none(const std::string& name) {
    return name.empty() ? nullptr : &codec_named(name);
}

// A file's path and identity, or memory, which is held until the run is over.
pipeline::PlannedSource source_from(const py::handle& source,
                                    std::vector<py::buffer_info>& memory) {
    if (!py::isinstance<py::buffer>(source)) {
        const auto [path, device, inode, size, modified_ns] = source.cast<SourceRow>();
        return {path, {device, inode, size, modified_ns}};
    }
    const py::buffer_info& info =
        memory.emplace_back(py::reinterpret_borrow<py::buffer>(source).request());
    if (PyBuffer_IsContiguous(info.view(), 'C') == 0) {
        throw Error(ErrorKind::internal, "memory that a plan reads is not contiguous");
    }
    const auto bytes =
        static_cast<std::uint64_t>(info.size) * static_cast<std::uint64_t>(info.itemsize);
    return {"(memory)", {0, 0, bytes, 0}, static_cast<const std::byte*>(info.ptr)};
}

pipeline::Plan plan_from(const py::list& sources, std::vector<py::buffer_info>& memory,
                         std::vector<TensorRow> tensors, const std::vector<FileRow>& files,
                         const std::vector<FolderRow>& folders) {
    pipeline::Plan plan;
    for (const py::handle& source : sources) plan.sources.push_back(source_from(source, memory));
    for (auto& [name, columns, parts, outputs] : tensors) {
        pipeline::PlannedTensor tensor{std::move(name), columns, {}, {}};
        for (const auto& [codec, rows, planes] : parts) {
            pipeline::SourcePart part{&codec_named(codec), rows, {}};
            for (const auto& [source, offset] : planes) part.planes.push_back({source, offset});
            tensor.parts.push_back(std::move(part));
        }
        for (const auto& [codec, planes, first_row, rows, importance, best, column_scale, row_scale,
                          scaled_in, via] : outputs) {
            pipeline::PlannedOutput output{&codec_named(codec),
                                           {},
                                           first_row,
                                           rows,
                                           importance,
                                           best,
                                           column_scale,
                                           row_scale,
                                           codec_or_none(scaled_in),
                                           codec_or_none(via)};
            for (const auto& [file, offset] : planes) output.planes.push_back({file, offset});
            tensor.outputs.push_back(std::move(output));
        }
        plan.tensors.push_back(std::move(tensor));
    }
    for (const auto& [path, size, literals, folder] : files) {
        pipeline::PlannedFile file{path, size, {}, folder};
        for (const auto& [offset, bytes] : literals) {
            file.literals.push_back({offset, std::string(bytes)});
        }
        plan.files.push_back(std::move(file));
    }
    for (const auto& [path, names] : folders) plan.folders.push_back({path, names});
    return plan;
}

py::dict execute(const py::list& sources, std::vector<TensorRow> tensors,
                 const std::vector<FileRow>& files, const std::vector<FolderRow>& folders,
                 std::vector<std::vector<float>> vectors, unsigned threads, bool overwrite,
                 const py::object& progress, const py::object& inspect) {
    std::vector<py::buffer_info> memory;
    memory.reserve(sources.size());
    pipeline::Plan plan = plan_from(sources, memory, std::move(tensors), files, folders);
    plan.vectors = std::move(vectors);
    pipeline::Watch watch;
    watch.progress = watch_progress(progress);
    watch.inspect = [&inspect](const std::vector<std::string>& staged) {
        const py::gil_scoped_acquire acquired;
        if (inspect.is_none()) return;
        py::list paths;
        for (const std::string& path : staged) {
            // As os.fsdecode: a file's name need not be UTF-8.
            PyObject* text =
                PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size()));
            if (text == nullptr) throw py::error_already_set();
            paths.append(py::reinterpret_steal<py::object>(text));
        }
        inspect(paths);
    };
    pipeline::Report report;
    {
        const py::gil_scoped_release released;
        report = pipeline::execute(plan, {threads, overwrite}, watch);
    }
    py::list rows;
    for (const auto& outputs : report.tensors) {
        py::list row;
        for (const pipeline::OutputReport& output : outputs) {
            py::list planes;
            for (const pipeline::PlaneReport& plane : output.planes) {
                planes.append(py::make_tuple(plane.bytes, plane.crc32c));
            }
            row.append(
                py::make_tuple(std::move(planes), output.squared_error, output.squared_signal));
        }
        rows.append(std::move(row));
    }
    py::dict result;
    result["tensors"] = std::move(rows);
    result["seconds_encoding"] = report.seconds_encoding;
    result["seconds_syncing"] = report.seconds_syncing;
    return result;
}

}  // namespace

namespace {

// Whole buffers at known places, for tensors that are in memory already.
void write_file(const std::string& path, std::uint64_t size,
                const std::vector<std::pair<std::uint64_t, py::buffer>>& pieces, bool overwrite) {
    std::vector<py::buffer_info> buffers;
    for (const auto& [offset, buffer] : pieces) {
        buffers.push_back(buffer.request());
        const auto bytes = static_cast<std::uint64_t>(buffers.back().size) *
                           static_cast<std::uint64_t>(buffers.back().itemsize);
        const auto end = try_add(offset, bytes);
        if (!end || *end > size) throw Error(ErrorKind::internal, "a piece ends past the file");
    }
    const auto observe = watch_progress(py::none());
    const py::gil_scoped_release released;
    io::StagedFile file(path, size, overwrite);
    Progress progress;
    run_workers(
        1, progress,
        [&](unsigned) {
            constexpr std::uint64_t k_step = std::uint64_t{16} << 20;
            for (std::size_t i = 0; i < pieces.size(); ++i) {
                const auto* data = static_cast<const std::byte*>(buffers[i].ptr);
                const auto bytes = static_cast<std::uint64_t>(buffers[i].size) *
                                   static_cast<std::uint64_t>(buffers[i].itemsize);
                for (std::uint64_t at = 0; at < bytes && !progress.stop; at += k_step) {
                    const std::uint64_t count = std::min(k_step, bytes - at);
                    file.write({data + at, count}, pieces[i].first + at);
                }
            }
            file.sync(progress.stop);
        },
        [&] { observe(0); });
    file.publish();
    file.keep();
}

}  // namespace

void bind_pipeline(py::module_& module) {
    module.def("write_file", &write_file, py::arg("path"), py::arg("size"), py::arg("pieces"),
               py::arg("overwrite"));
    module.def("execute", &execute, py::arg("sources"), py::arg("tensors"), py::arg("files"),
               py::arg("folders"), py::arg("vectors"), py::arg("threads"), py::arg("overwrite"),
               py::arg("progress") = py::none(), py::arg("inspect") = py::none());
    module.def(
        "block_bytes",
        [](const std::string& codec, std::uint64_t rows, std::uint64_t columns) {
            const codecs::Codec& found = codec_named(codec);
            if (found.layout != codecs::Layout::blocks) {
                std::uint64_t total = 0;
                for (const codecs::Plane& plane : codecs::planes_of(found, rows, columns)) {
                    total += plane.bytes();
                }
                return total;
            }
            if (columns % found.block_values != 0) {
                throw Error(ErrorKind::shape,
                            "rows of " + std::to_string(columns) + " columns do not divide into " +
                                codec + " blocks of " + std::to_string(found.block_values));
            }
            return checked_multiply(checked_multiply(rows, columns / found.block_values),
                                    found.block_bytes);
        },
        py::arg("codec"), py::arg("rows"), py::arg("columns"));
    module.def(
        "crc32c",
        [](const py::bytes& bytes) {
            const auto view = static_cast<std::string_view>(bytes);
            return crc32c(std::as_bytes(std::span(view)));
        },
        py::arg("bytes"));
    // A worker's memory for tensors of so many columns: in tiles of whole rows (planes, moved
    // codes), and in wide ones (codecs of planes that are read or written by columns), or not.
    module.def(
        "scratch_bytes",
        [](std::uint64_t columns, bool whole_rows, const std::vector<std::string>& wide) {
            if (!whole_rows || columns == 0) return pipeline::Scratch::bytes();
            std::uint64_t values = pipeline::k_tile_values;
            for (const std::string& name : wide) {
                values = std::max(values, pipeline::wide_tile_values(codec_named(name)));
            }
            const pipeline::Tiling tiling(std::uint64_t{1} << 32, columns, codecs::k_row_step,
                                          values);
            // Elements and pieces of planes beside it: less than half as much.
            return pipeline::Scratch::bytes(tiling.most_values()) * 3 / 2;
        },
        py::arg("columns"), py::arg("whole_rows"), py::arg("wide"));
}

}  // namespace phiquant::bindings
