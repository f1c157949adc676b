// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reapAfter is how long a dead child is left to whoever started it.
const reapAfter = 10 * time.Second

// Reaper collects the dead children that PID 1 inherits, and leaves alone those that
// somebody in this process waits for.
//
// There are few orphans: one of a container is inherited by that container's first
// process; only when the start of a container is torn off in the middle does one reach
// the agent. And no table can tell the two apart, because libcontainer makes
// children of the agent (by CLONE_PARENT) whose numbers it learns later. So the rule is
// one of time: whoever starts a process waits for it from the moment it exists, and a
// child that is still dead and unclaimed when it is looked at twice, reapAfter apart, is
// an orphan.
//
// It runs until ctx ends, sleeps until a child dies, and looks again only while there
// are dead ones.
func Reaper(ctx context.Context) {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	var again <-chan time.Time
	dead := map[int]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-died:
			if again == nil {
				dead, again = zombies(), time.After(reapAfter)
			}
			continue
		case <-again:
		}
		now := zombies()
		for pid := range now {
			if dead[pid] {
				var status unix.WaitStatus
				for {
					if _, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); !errors.Is(err, unix.EINTR) {
						break
					}
				}
				delete(now, pid)
			}
		}
		dead, again = now, nil
		if len(now) > 0 {
			again = time.After(reapAfter)
		}
	}
}

// zombies are the children of this process that have died and not been waited for.
func zombies() map[int]bool {
	out := map[int]bool{}
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return out
	}
	for _, path := range lists {
		list, err := os.ReadFile(path)
		if err != nil {
			continue // the thread is gone, and its children are another's
		}
		for field := range strings.FieldsSeq(string(list)) {
			stat, err := os.ReadFile("/proc/" + field + "/stat")
			if err != nil {
				continue
			}
			// The name is in parentheses and may hold anything; the state follows it.
			if _, rest, ok := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " "); ok && strings.HasPrefix(rest, "Z") {
				if pid, err := strconv.Atoi(field); err == nil {
					out[pid] = true
				}
			}
		}
	}
	return out
}
