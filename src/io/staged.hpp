// An output file that is written beside its target under another name and renamed when whole.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/error.hpp"

namespace phiquant::io {

class StagedFolder;

/// Positioned, thread-safe writes into a staged file `.NAME.phiquant-XXXXXXXX` in the target's
/// folder. Until publish() the target is as it was, and until keep() it can be made so again: the
/// destructor removes what was not published and takes back what was not kept.
/// The staged file is locked while its process lives, so that a later run can tell what a killed
/// one left behind, and removes it.
class StagedFile {
public:
    /// Reserves `size` bytes on the disk. Throws Error(io): no space, no permission, a name that is
    /// too long; Error(usage) when the target exists and `overwrite` is false.
    StagedFile(std::string target, std::uint64_t size, bool overwrite);
    /// A new file in a staged folder, which is published as a whole: publish() and keep() do
    /// nothing.
    StagedFile(const StagedFolder& folder, const std::string& name, std::uint64_t size);
    ~StagedFile();
    StagedFile(const StagedFile&) = delete;
    StagedFile& operator=(const StagedFile&) = delete;

    [[nodiscard]] const std::string& target() const noexcept { return target_; }
    [[nodiscard]] const std::string& path() const noexcept { return path_; }
    [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

    /// Write all of `bytes` at `offset`, and start them on their way to the disk.
    void write(std::span<const std::byte> bytes, std::uint64_t offset);

    /// Wait until every byte is on the disk, or until `stop` is set. Any error here is final.
    void sync(const std::atomic<bool>& stop);

    /// Give the file its name and make the name durable. What stood there before stays at hand
    /// under a staged name, where the file system can do that.
    void publish();

    /// After every file of a run is published: let go of what stood there before. Never fails.
    void keep() noexcept;

private:
    void remove_abandoned() const;
    void create();
    void reserve();
    [[nodiscard]] Error give_up(int error, const std::string& what);
    void set_previous_aside();
    void rename_to_absent_target();
    void take_back() noexcept;
    [[nodiscard]] std::string staged_name() const;

    enum class State : std::uint8_t { staged, published, kept };

    std::string target_, folder_, name_, path_;
    std::string previous_;  ///< a second name of what the target was, empty where nothing was
    bool replaced_for_good_ = false;  ///< the file system cannot give files a second name
    std::uint64_t size_;
    bool overwrite_;
    bool in_folder_ = false;
    State state_ = State::staged;
    int descriptor_ = -1;
    int previous_descriptor_ = -1;
    std::atomic<std::uint64_t> unflushed_{0};
};

}  // namespace phiquant::io
