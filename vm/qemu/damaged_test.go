// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// A machine whose record is damaged and that has a process is not taken for one that was
// never made: it would be deleted. Without a process it is.
func TestLoadDamagedRecord(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "m")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	d := &Driver{log: slog.New(slog.NewTextHandler(&log, nil)), machines: machinedir.NewRegistry[*machine](root)}
	t.Cleanup(func() { _ = d.Close() })
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, recordFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Known by its working directory on Linux, by its arguments on macOS.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "read x; :", "sh", dir)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", `{"version":`, `{"version":"1"}`} {
		write(text)
		m, err := d.Load(t.Context(), "m")
		if err != nil {
			t.Fatalf("record %q beside a process: %v", text, err)
		}
		if _, err := m.State(t.Context()); !errors.Is(err, vm.ErrUnreadable) {
			t.Errorf("record %q beside a process: state %v", text, err)
		}
		// It is not QEMU.
		if err := m.Delete(t.Context()); !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), "kill ") {
			t.Errorf("record %q beside a process: delete %v", text, err)
		}
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load(t.Context(), "m"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log.String(), "never made completely") || strings.Contains(log.String(), "nil") {
		t.Errorf("log is %s", log.String())
	}
	if err := os.Mkdir(filepath.Join(root, "half"), 0o700); err != nil {
		t.Fatal(err)
	}
	dir, log = filepath.Join(root, "half"), bytes.Buffer{}
	write(`{"version":1}`)
	if _, err := d.Load(t.Context(), "half"); err != nil || strings.Contains(log.String(), "nil") || !strings.Contains(log.String(), errNotReady.Error()) {
		t.Errorf("one that was being made: %v, log %s", err, log.String())
	}
}
