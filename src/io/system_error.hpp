// An errno value as an Error that names the file and, where there is one, the remedy.
#pragma once

#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.hpp"

namespace phiquant::io {

[[nodiscard]] inline Error system_error(int number, const std::string& path, const char* what) {
    const char* remedy = "";
    switch (number) {
        case ENOSPC:
            remedy = "The disk is full: free some space or write to another disk.";
            break;
        case EDQUOT:
            remedy = "The disk quota is used up: free some space or write elsewhere.";
            break;
        case EACCES:
        case EPERM:
        case EROFS:
            remedy = "Check the permissions, or choose another folder.";
            break;
        case ENAMETOOLONG:
            remedy = "Choose a shorter name.";
            break;
        case EFBIG:
            remedy =
                "The file system, or a limit of this process (ulimit -f), takes no file of "
                "this size: write elsewhere or raise the limit.";
            break;
        case EMFILE:
        case ENFILE:
            remedy = "Too many files are open: raise the limit (ulimit -n).";
            break;
        case EIO:
            remedy = "The disk or the network reported an error: check it, or use another.";
            break;
        default:
            break;
    }
    return {ErrorKind::io, path, {}, std::string(what) + ": " + std::strerror(number), remedy};
}

}  // namespace phiquant::io
