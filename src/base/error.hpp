// The one family of errors that C++ throws; bindings map it to the classes of phiquant.errors.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace phiquant {

/// What went wrong, by who can mend it. Each kind is one Python class and one exit code.
enum class ErrorKind : std::uint8_t {
    internal,     ///< a broken promise of phiquant's own
    usage,        ///< arguments that make no sense together
    format,       ///< a file that is not what it says it is
    unsupported,  ///< a sound input that phiquant does not handle
    shape,        ///< a shape that a codec or operation cannot take
    value,        ///< weights that cannot be quantized: NaN, infinity, overflow
    io,           ///< the operating system refused a read or a write
    changed,      ///< a source that changed while it was read
    cancelled,    ///< the caller asked to stop
};

/// An error names where it happened (file, tensor; empty when not known), the cause, and the
/// remedy.
class Error : public std::runtime_error {
public:
    Error(ErrorKind kind, std::string cause, std::string remedy = {})
        : Error(kind, {}, {}, std::move(cause), std::move(remedy)) {}

    Error(ErrorKind kind, std::string file, std::string tensor, std::string cause,
          std::string remedy = {})
        : std::runtime_error(cause),
          kind_(kind),
          file_(std::move(file)),
          tensor_(std::move(tensor)),
          cause_(std::move(cause)),
          remedy_(std::move(remedy)) {}

    [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }
    [[nodiscard]] const std::string& file() const noexcept { return file_; }
    [[nodiscard]] const std::string& tensor() const noexcept { return tensor_; }
    [[nodiscard]] const std::string& cause() const noexcept { return cause_; }
    [[nodiscard]] const std::string& remedy() const noexcept { return remedy_; }

    /// The same error with the place filled in where the thrower did not know it.
    [[nodiscard]] Error at(const std::string& file, const std::string& tensor = {}) const {
        return {kind_, file_.empty() ? file : file_, tensor_.empty() ? tensor : tensor_, cause_,
                remedy_};
    }

private:
    ErrorKind kind_;
    std::string file_, tensor_, cause_, remedy_;
};

}  // namespace phiquant
