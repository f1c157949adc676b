// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// maxPrinted bounds what is kept of a failed command's words.
const maxPrinted = 1 << 10

// commandTimeout is for one that hangs, and a host that waits for it: all of them take
// milliseconds, but what waits for a disk.
const commandTimeout = 30 * time.Second

// RunCommand is the Runner of a real machine.
func RunCommand(ctx context.Context, stdin, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second // for a child that keeps the output open
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		// Some, as networksetup, tell their errors on standard output.
		said := strings.TrimSpace(errs.String() + " " + out.String())
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said[:min(len(said), maxPrinted)])
	}
	return out.String(), nil
}
