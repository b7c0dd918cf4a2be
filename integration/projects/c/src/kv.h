#ifndef KV_H
#define KV_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { KV_LINE = 256 };

/* Where the server is: the loopback, on KV_PORT or 7379. */
static inline struct sockaddr_in kv_address(void)
{
	const char *port = getenv("KV_PORT");
	struct sockaddr_in address;
	memset(&address, 0, sizeof address);
	address.sin_family = AF_INET;
	address.sin_port = htons((unsigned short)(port ? atoi(port) : 7379));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

#endif
