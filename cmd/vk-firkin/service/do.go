// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// commandTimeout bounds a command of the manager; one that waits for the node's end has the time
	// that this may take on top.
	commandTimeout = 3 * time.Minute
	// retryFor and retryEvery are how long what another command began is waited for.
	retryFor, retryEvery = 30 * time.Second, time.Second
	// maxShownOutput is how much of what a failing command said its error has.
	maxShownOutput = 1000
)

// Do takes the steps in order, and tells each before it is taken. The first one that fails
// ends it; what was done stays, and Do may be called again.
func Do(ctx context.Context, steps []Step, tell func(Step)) error {
	for _, s := range steps {
		tell(s)
		if err := do(ctx, s); err != nil {
			if s.Remedy != "" {
				err = fmt.Errorf("%w; %s", err, s.Remedy)
			}
			return err
		}
	}
	return nil
}

func do(ctx context.Context, s Step) error {
	switch {
	case s.Write != "":
		return write(s)
	case s.Folder != "":
		return folder(s)
	case s.Remove != "":
		if err := os.Remove(s.Remove); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	err := run(ctx, s.Run, commandTimeout+s.Patience)
	if s.Retry {
		ctx, cancel := context.WithTimeout(ctx, retryFor)
		defer cancel()
		for err != nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(retryEvery):
				err = run(ctx, s.Run, commandTimeout+s.Patience)
			}
		}
	}
	if s.MayFail && ctx.Err() == nil {
		return nil
	}
	return err
}

func run(ctx context.Context, argv []string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the commands are this package's
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed: %w", argv[0], err)
	}
	said := strings.TrimSpace(string(out[:min(len(out), maxShownOutput)]))
	return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, said)
}

// write puts a file in the place of a former one in one step: a program that runs keeps
// the file that it was started from.
func write(s Step) (err error) {
	dir := filepath.Dir(s.Write)
	if err := os.MkdirAll(dir, 0o755); err != nil { // less where the process's umask says so
		return err
	}
	var from io.Reader = strings.NewReader(string(s.Content))
	if s.Copy != "" {
		f, err := os.Open(s.Copy)
		if err != nil {
			return err
		}
		defer f.Close()
		from = f
	}
	to, err := os.CreateTemp(dir, "."+filepath.Base(s.Write)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(to.Name()))
		}
	}()
	_, err = io.Copy(to, from)
	if err == nil {
		err = to.Chmod(s.Mode)
	}
	if err == nil {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("write %s: %w", s.Write, err)
	}
	return os.Rename(to.Name(), s.Write)
}

// folder makes a folder, and those above it that are missing, for its owner; what is there
// stays as it is.
func folder(s Step) error {
	err := os.Mkdir(s.Folder, s.Mode)
	if errors.Is(err, os.ErrNotExist) {
		above := s
		above.Folder = filepath.Dir(s.Folder)
		if err := folder(above); err != nil {
			return err
		}
		err = os.Mkdir(s.Folder, s.Mode)
	}
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil || s.Owner == os.Getuid() {
		return err
	}
	// It is in a folder of the user's, who may have put a link to somebody else's file there meanwhile.
	return os.Lchown(s.Folder, s.Owner, -1)
}
