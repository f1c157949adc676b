/*
 * Copyright The vk-firkin Authors
 * SPDX-License-Identifier: Apache-2.0
 *
 * /bin/sh of the busybox in the test images. It hands over to busybox's shell, but for "sh -c env": the
 * shell of Debian 12's busybox (1.35) drops the variables whose names are no identifiers, such as a
 * ConfigMap's "data-1", where that of the upstream image (1.37) keeps them, and specs look for them in
 * that command's output. In C, because every container of the specs starts with it.
 */
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char *env[] = {"env", NULL};

	if (argc == 3 && !strcmp(argv[1], "-c") && !strcmp(argv[2], "env"))
		argv = env;
	execv("/bin/busybox", argv);
	return 127;
}
