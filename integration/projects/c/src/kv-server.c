/* Keeps one value in a file of its working directory: SET value, GET, PING, WHO. */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "kv.h"

static void answer(int client, char *line)
{
	char reply[KV_LINE + 16] = "-ERR\n";
	line[strcspn(line, "\r\n")] = 0;
	if (strcmp(line, "PING") == 0) {
		strcpy(reply, "+PONG\n");
	} else if (strcmp(line, "WHO") == 0) {
		snprintf(reply, sizeof reply, "+%d:%d\n", (int)getuid(), (int)getgid());
	} else if (strncmp(line, "SET ", 4) == 0) {
		FILE *file = fopen("value", "w");
		if (file && fputs(line + 4, file) >= 0 && fclose(file) == 0)
			strcpy(reply, "+OK\n");
	} else if (strcmp(line, "GET") == 0) {
		char value[KV_LINE] = "";
		FILE *file = fopen("value", "r");
		if (file && fgets(value, sizeof value, file))
			snprintf(reply, sizeof reply, "$%s\n", value);
		if (file)
			fclose(file);
	}
	if (write(client, reply, strlen(reply)) < 0)
		perror("write");
}

static void end(int number)
{
	(void)number;
	_exit(0);
}

int main(void)
{
	struct sockaddr_in address = kv_address();
	int one = 1, server = socket(AF_INET, SOCK_STREAM, 0);
	signal(SIGTERM, end);
	signal(SIGPIPE, SIG_IGN);
	setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 8)) {
		perror("listen");
		return 1;
	}
	for (;;) {
		char line[KV_LINE];
		int client = accept(server, NULL, NULL);
		ssize_t length = client < 0 ? -1 : read(client, line, sizeof line - 1);
		if (length > 0) {
			line[length] = 0;
			answer(client, line);
		}
		if (client >= 0)
			close(client);
	}
}
