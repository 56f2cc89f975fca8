// Fuzz target: any bytes as an ONNX model. What is read lies in the file, and survives writing.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "base/error.hpp"
#include "formats/onnx.hpp"

namespace {

using namespace phiquant;
using namespace phiquant::formats;

void require(bool holds) {
    if (!holds) std::abort();
}

void fill(OnnxTensor& tensor, std::span<const std::byte> file) {
    require(tensor.storage == OnnxStorage::external || tensor.length == onnx_tensor_bytes(tensor));
    if (tensor.storage == OnnxStorage::external) {
        require(!tensor.location.empty() && tensor.offset <= UINT64_MAX - tensor.length);
        return;
    }
    if (tensor.storage != OnnxStorage::in_file) return;
    require(tensor.offset <= file.size() && tensor.length <= file.size() - tensor.offset);
    const auto bytes = file.subspan(tensor.offset, tensor.length);
    tensor.values.assign(bytes.begin(), bytes.end());
    tensor.storage = OnnxStorage::values;
}

/// Takes the values that stand in the file out of it, as a writer needs them.
void fill(OnnxGraph& graph, std::span<const std::byte> file) {
    for (auto& tensor : graph.initializers) fill(tensor, file);
    for (auto& node : graph.nodes) {
        for (auto& attribute : node.attributes) {
            if (auto* tensor = std::get_if<OnnxTensor>(&attribute.value)) fill(*tensor, file);
            if (auto* inner = std::get_if<std::shared_ptr<OnnxGraph>>(&attribute.value)) {
                fill(**inner, file);
            }
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    try {
        OnnxModel model = parse_onnx(bytes);
        fill(model.graph, bytes);
        const auto written = write_onnx(model);
        OnnxModel again = parse_onnx(written);
        require(again.ir_version == model.ir_version && again.opsets == model.opsets);
        require(again.metadata == model.metadata);
        require(again.graph.nodes.size() == model.graph.nodes.size());
        require(again.graph.initializers.size() == model.graph.initializers.size());
        fill(again.graph, written);
        // Bytes and not values: a NaN is unequal to itself.
        require(write_onnx(again) == written);
    } catch (const Error& error) {
        require(error.kind() == ErrorKind::format || error.kind() == ErrorKind::unsupported);
    }
    return 0;
}
