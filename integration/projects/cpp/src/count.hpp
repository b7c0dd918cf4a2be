#pragma once
#include <map>
#include <string>
#include <vector>

/// How often each word is there.
std::map<std::string, int> count(const std::vector<std::string> &words);
