// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// A user enters a container: input, output, exit codes, two shells at once, and a
// file that is larger than any buffer.
func TestExec(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "box", served.Busybox, "sleep", "3600"))
	waitRunning(t, ns, "box")
	run := func(stdin string, flags []string, command ...string) (stdout, stderr string, code int) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := plane.Kubectl(ctx, append(append([]string{"exec", "-n", ns, "box"}, flags...), append([]string{"--"}, command...)...)...)
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatalf("kubectl exec: %v", err)
		}
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}

	if out, _, code := run("", nil, "echo", "one  argument", "$HOME"); out != "one  argument $HOME\n" || code != 0 {
		t.Errorf("echo gave %q, exit code %d", out, code)
	}
	if out, errs, code := run("", nil, "sh", "-c", "echo out; echo err >&2; exit 42"); out != "out\n" || !strings.HasPrefix(errs, "err\n") || code != 42 {
		t.Errorf("streams %q and %q, exit code %d; want out, err, 42", out, errs, code)
	}
	if _, errs, code := run("", nil, "no-such-program"); code == 0 || !strings.Contains(errs, "no-such-program") {
		t.Errorf("a program that does not exist: exit code %d, %q", code, errs)
	}
	if out, _, code := run("typed\n", []string{"-i"}, "cat"); out != "typed\n" || code != 0 {
		t.Errorf("cat gave back %q, exit code %d", out, code)
	}

	big := strings.Repeat("0123456789abcdef", 8<<20/16)
	want := fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(big)))
	if out, _, _ := run(big, []string{"-i"}, "sha256sum"); out != want {
		t.Errorf("8 MiB in: sum %q, want %q", out, want)
	}
	if out, _, _ := run("", nil, "sh", "-c", "yes 0123456789abcde | head -c 8388608"); len(out) != 8<<20 {
		t.Errorf("8 MiB out: got %d bytes", len(out))
	}

	var both sync.WaitGroup
	for _, name := range []string{"first", "second"} {
		both.Go(func() {
			if out, _, code := run(name+"\n", []string{"-i"}, "sh", "-c", "read x; sleep 1; echo $x"); out != name+"\n" || code != 0 {
				t.Errorf("shell %s gave %q, exit code %d", name, out, code)
			}
		})
	}
	both.Wait()
}
