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
        default:
            break;
    }
    return {ErrorKind::io, path, {}, std::string(what) + ": " + std::strerror(number), remedy};
}

}  // namespace phiquant::io
