// The C structs of DLPack (https://dmlc.github.io/dlpack, version 1.1), which tensors travel in.
#pragma once

#include <cstdint>

namespace phiquant::dlpack {

inline constexpr const char* k_capsule = "dltensor";
inline constexpr const char* k_capsule_used = "used_dltensor";
inline constexpr const char* k_capsule_versioned = "dltensor_versioned";
inline constexpr const char* k_capsule_versioned_used = "used_dltensor_versioned";
inline constexpr std::uint32_t k_major = 1;  ///< the ABI that these structs describe
inline constexpr std::uint32_t k_cpu = 1;    ///< kDLCPU

enum TypeCode : std::uint8_t { k_int = 0, k_uint = 1, k_float = 2, k_bfloat = 4 };

struct Device {
    std::int32_t type;
    std::int32_t id;
};

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

struct Tensor {
    void* data;
    Device device;
    std::int32_t dimensions;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;  ///< in items; null means C-contiguous
    std::uint64_t byte_offset;
};

struct ManagedTensor {
    Tensor tensor;
    void* manager;
    void (*deleter)(ManagedTensor*);
};

struct Version {
    std::uint32_t major, minor;
};

struct ManagedTensorVersioned {
    Version version;
    void* manager;
    void (*deleter)(ManagedTensorVersioned*);
    std::uint64_t flags;
    Tensor tensor;
};

}  // namespace phiquant::dlpack
