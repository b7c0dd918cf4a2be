#include <locale.h>
#include <stdio.h>

int main(void)
{
	printf("%s\n", setlocale(LC_ALL, "") ? "locale is there" : "locale is not there");
	return 0;
}
