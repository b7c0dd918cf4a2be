/* Sends its arguments as one line and prints the answer; fails unless it is a good one. */
#include <stdio.h>
#include <unistd.h>

#include "kv.h"

int main(int count, char **arguments)
{
	struct sockaddr_in address = kv_address();
	char line[KV_LINE] = "";
	int server = socket(AF_INET, SOCK_STREAM, 0);
	for (int i = 1; i < count; i++) {
		if (i > 1)
			strncat(line, " ", sizeof line - strlen(line) - 1);
		strncat(line, arguments[i], sizeof line - strlen(line) - 2);
	}
	strcat(line, "\n");
	if (connect(server, (struct sockaddr *)&address, sizeof address)) {
		perror("connect");
		return 1;
	}
	if (write(server, line, strlen(line)) < 0)
		return 1;
	ssize_t length = read(server, line, sizeof line - 1);
	if (length <= 0)
		return 1;
	line[length] = 0;
	fputs(line, stdout);
	return line[0] == '-';
}
