// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Result is what a command did.
type Result struct {
	// Stdout and Stderr are what it wrote, at most maxOutput bytes of each: some of
	// Apple's commands answer on standard error.
	Stdout, Stderr []byte
	// Exit is its exit code: some of them answer by that.
	Exit int
}

// Runner runs one of macOS's commands to its end. An error means that there was none: no
// such command, no answer in time, killed. An exit code that is not zero is an answer.
type Runner func(ctx context.Context, name string, args ...string) (Result, error)

const (
	// runTimeout bounds a command. They answer in well under a second; one that waits
	// for a person never does.
	runTimeout = 10 * time.Second
	// reapTimeout is how long a killed command may keep its pipes open.
	reapTimeout = time.Second
	// maxOutput is more than any of them prints; launchctl's is about 100 KiB.
	maxOutput = 1 << 20
)

// Run is the Runner of this host. The command gets no standard input, so that it cannot
// ask, and no language but C.
func Run(ctx context.Context, name string, args ...string) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LANG=C")
	cmd.WaitDelay = reapTimeout
	var stdout, stderr bounded
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.kept.Bytes(), Stderr: stderr.kept.Bytes(), Exit: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("run %s: %w", filepath.Base(name), ctx.Err())
	case errors.As(err, &exit) && exit.Exited():
		return r, nil
	case err != nil:
		return r, fmt.Errorf("run %s: %w", filepath.Base(name), err)
	}
	return r, nil
}

// bounded keeps the first maxOutput bytes and drops the rest, so that the writer is not
// stopped. The buffer is not embedded: io.Copy would find its ReadFrom.
type bounded struct{ kept bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	b.kept.Write(p[:min(len(p), maxOutput-b.kept.Len())])
	return len(p), nil
}

// failed is nil for exit code 0.
func (r Result) failed(name string) error {
	if r.Exit == 0 {
		return nil
	}
	return fmt.Errorf("%s ended with exit code %d: %s", filepath.Base(name), r.Exit, r.said())
}

// maxSaid bounds what is shown of what a command says.
const maxSaid = 300

// said is the first line of what it says for people.
func (r Result) said() string {
	for _, out := range [][]byte{r.Stderr, r.Stdout} {
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if line = strings.TrimSpace(line); line != "" {
			if len(line) > maxSaid {
				line = line[:maxSaid] + "..."
			}
			return strings.ToValidUTF8(line, "?")
		}
	}
	return "it said nothing"
}
