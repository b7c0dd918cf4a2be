#include <fmt/format.h>
#include <thread>

#include "count.hpp"

int main(int argc, char **argv)
{
	std::map<std::string, int> counted;
	std::thread worker([&] { counted = count({argv + 1, argv + argc}); });
	worker.join();
	for (const auto &[word, times] : counted)
		fmt::print("{:<6}{:>3}\n", word, times);
}
