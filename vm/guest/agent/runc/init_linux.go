// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
)

const (
	// libcontainer starts a container's first process as "init".
	argInit = "init"
	// argHold is the holder of a shared PID namespace.
	argHold = "hold-pids"
)

// Init takes the process over when libcontainer or this package started it as a copy
// of the agent, and does not return then. main calls it first. As PID 1 of the
// machine it does nothing, whatever the kernel's command line passed to it.
func Init() {
	if len(os.Args) != 2 {
		return
	}
	switch {
	case os.Args[1] == argInit && os.Getenv("_LIBCONTAINER_INITPIPE") != "":
		libcontainer.Init()
	case os.Args[1] == argAwait && os.Getenv(awaitEnv) != "":
		await()
	case os.Args[1] == argHold && os.Getpid() == 1 && os.Getenv(holdEnv) != "":
		hold()
	}
}

// holdEnv tells the holder from an agent whose command line has the same word.
const holdEnv = "_FIRKIN_HOLD_PIDS"

// hold is PID 1 of a shared PID namespace: it reaps what the containers orphan, until
// it is killed.
func hold() {
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	for range died {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
		}
	}
}
