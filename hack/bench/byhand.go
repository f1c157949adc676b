// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// restoreByHand measures QEMU without the driver: exec, load the state, let it run,
// connect, greet. Command line and files are those of a machine that the driver has
// restored; what the driver makes for each machine (the empty overlay) is made
// before the clock starts.
func (b *bench) restoreByHand(ctx context.Context) error {
	argv, dir, err := b.recipe(ctx)
	if err != nil {
		return fmt.Errorf("learn the command line: %w", err)
	}
	defer os.RemoveAll(dir)

	began := time.Now()
	state, err := os.Open(filepath.Join(b.snapshot, "state"))
	if err != nil {
		return err
	}
	defer state.Close()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.ExtraFiles = []*os.File{state}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if err := handLoad(ctx, filepath.Join(dir, "q")); err != nil {
		return fmt.Errorf("restore by hand: %w: %s", err, said.String())
	}
	err = ready(ctx, func() (net.Conn, error) { return net.Dial("unix", filepath.Join(dir, "a")) })
	if err != nil {
		return err
	}
	b.byHand = append(b.byHand, time.Since(began))
	return nil
}

// recipe restores a machine by the driver, copies its command line with sockets by
// path instead of by descriptor, and a copy of its files, and deletes it.
func (b *bench) recipe(ctx context.Context) (argv []string, dir string, err error) {
	m, err := b.driver.Restore(ctx, "recipe", b.snapshot, vm.Config{Shape: b.shape, Kit: b.kit})
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, m.Delete(context.WithoutCancel(ctx))) }()
	from := filepath.Join(b.dir, "state", "machines", "recipe")
	var record struct {
		Process struct {
			PID        int    `json:"pid"`
			Executable string `json:"executable"`
		} `json:"process"`
	}
	text, err := os.ReadFile(filepath.Join(from, "machine.json"))
	if err != nil {
		return nil, "", err
	}
	if err := json.Unmarshal(text, &record); err != nil {
		return nil, "", err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", record.Process.PID))
	if err != nil {
		return nil, "", err
	}
	argv = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	argv[0] = record.Process.Executable
	for i := range argv {
		argv[i] = strings.Replace(argv[i], "socket,id=qmp,fd=3", "socket,id=qmp,path=q", 1)
		argv[i] = strings.Replace(argv[i], "socket,id=agent,fd=4", "socket,id=agent,path=a", 1)
	}
	// Under the temp directory: a socket's path is short.
	if dir, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, "", err
	}
	overlay, err := os.ReadFile(filepath.Join(from, "scratch.qcow2"))
	if err != nil {
		return nil, dir, err
	}
	return argv, dir, os.WriteFile(filepath.Join(dir, "scratch.qcow2"), overlay, 0o600)
}

// handLoad speaks QMP as a person would with netcat.
func handLoad(ctx context.Context, path string) error {
	var conn net.Conn
	for {
		var err error
		if conn, err = net.Dial("unix", path); err == nil {
			break
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	in := bufio.NewScanner(conn)
	in.Scan() // the greeting
	say := func(command string) (string, error) {
		if _, err := conn.Write([]byte(command + "\n")); err != nil {
			return "", err
		}
		for in.Scan() {
			line := in.Text()
			if strings.HasPrefix(line, `{"error"`) {
				return line, errors.New(line)
			}
			if strings.HasPrefix(line, `{"return"`) {
				return line, nil
			}
		}
		return "", errors.Join(in.Err(), errors.New("QEMU closed the connection"))
	}
	for _, command := range []string{
		`{"execute":"qmp_capabilities"}`,
		`{"execute":"migrate-set-capabilities","arguments":{"capabilities":[{"capability":"x-ignore-shared","state":true}]}}`,
		`{"execute":"migrate-incoming","arguments":{"uri":"fd:3"}}`,
	} {
		if _, err := say(command); err != nil {
			return err
		}
	}
	for {
		line, err := say(`{"execute":"query-migrate"}`)
		if err != nil {
			return err
		}
		if strings.Contains(line, `"completed"`) {
			break
		}
		time.Sleep(500 * time.Microsecond) //nolint:forbidigo // by hand means without QMP's events
	}
	_, err := say(`{"execute":"cont"}`)
	return err
}
