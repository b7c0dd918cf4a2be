#include "count.hpp"

std::map<std::string, int> count(const std::vector<std::string> &words)
{
	std::map<std::string, int> counted;
	for (const auto &word : words)
		++counted[word];
	return counted;
}
