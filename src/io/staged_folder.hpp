// An output folder that is filled beside its target under another name and renamed when whole.
#pragma once

#include <string>
#include <vector>

namespace phiquant::io {

/// A folder `.NAME.phiquant-XXXXXXXX` beside the target, as StagedFile is for files: until
/// publish() the target is as it was, until keep() it can be made so again, and what a killed run
/// left behind is removed by a later one. StagedFile writes its files.
class StagedFolder {
public:
    /// `names` are those of the files that will stand in it. An existing folder is only replaced
    /// (with `overwrite`) when it holds no others, an empty one always. Throws Error(usage) when
    /// the target exists otherwise; Error(io).
    StagedFolder(std::string target, std::vector<std::string> names, bool overwrite);
    ~StagedFolder();
    StagedFolder(const StagedFolder&) = delete;
    StagedFolder& operator=(const StagedFolder&) = delete;

    [[nodiscard]] const std::string& target() const noexcept { return target_; }
    /// Where the files are written.
    [[nodiscard]] const std::string& path() const noexcept { return path_; }

    /// Give the folder its name and make the names durable.
    void publish();

    /// After everything of a run is published: let go of what stood there before. Never fails.
    void keep() noexcept;

private:
    void check_target() const;
    void remove_abandoned() const;
    void create();

    enum class State : unsigned char { staged, published, kept };

    std::string target_, parent_, name_, path_;
    std::vector<std::string> names_;
    bool overwrite_;
    bool replaced_ = false;  ///< `path_` holds what the target was
    State state_ = State::staged;
    int descriptor_ = -1;
};

}  // namespace phiquant::io
