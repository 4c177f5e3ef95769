// SPDX-License-Identifier: GPL-2.0
/*
 * count PROGRAM [ARGUMENT...]: run a program and print how far the time stamp
 * counter went. On an emulator whose clock is its instructions that is the
 * number of instructions; both CPUs and what the program waits for count.
 */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

int main(int argc, char **argv)
{
	unsigned long long start;
	int status;
	pid_t pid;

	if (argc < 2) {
		fprintf(stderr, "usage: count PROGRAM [ARGUMENT...]\n");
		return 126;
	}
	start = __rdtsc();
	pid = fork();
	if (!pid) {
		execv(argv[1], argv + 1);
		perror(argv[1]);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0) {
		perror("count");
		return 126;
	}
	printf("@tsc %llu\n", __rdtsc() - start);
	if (WIFSIGNALED(status)) {
		printf("count: killed by signal %d\n", WTERMSIG(status));
		return 128 + WTERMSIG(status);
	}
	return WEXITSTATUS(status);
}
