#include "count.hpp"

int main()
{
	return count({"a", "b", "a"})["a"] == 2 ? 0 : 1;
}
