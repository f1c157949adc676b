// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

func TestWriteJSONReplaces(t *testing.T) {
	dir := t.TempDir()
	for _, want := range []string{"first", "second"} {
		if err := writeJSON(dir, "x.json", record{Version: recordVersion, ID: want}); err != nil {
			t.Fatal(err)
		}
		var got record
		if err := readJSON(dir, "x.json", &got); err != nil || got.ID != want {
			t.Errorf("read %+v, %v, want id %q", got, err, want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("directory has %v, %v, want the file alone", entries, err)
	}
}

func TestReadJSONIsBounded(t *testing.T) {
	dir := t.TempDir()
	big, err := json.Marshal(record{ID: strings.Repeat("x", maxRecordBytes)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x.json"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readJSON(dir, "x.json", &record{}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("error is %v, want one about the size", err)
	}
}

func TestNoSpace(t *testing.T) {
	for err, want := range map[error]bool{
		syscall.ENOSPC: true, syscall.EDQUOT: true, syscall.ENOMEM: true, syscall.EIO: false,
	} {
		got := noSpace(fmt.Errorf("write: %w", err))
		if errors.Is(got, vm.ErrNoSpace) != want || !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
	if noSpace(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	const size = 64 << 20
	if err := sparseFile(from, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(from, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	places := map[int64][]byte{0: []byte("begin"), 10<<20 + 123: bytes.Repeat([]byte("x"), 9999), size - 4: []byte("end.")}
	for at, data := range places {
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := copySparse(from, to); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the copy differs")
	}
	info, err := os.Stat(to)
	if err != nil {
		t.Fatal(err)
	}
	if n := allocatedBytes(info); n > size/2 {
		t.Errorf("the copy of a file with %d bytes of data occupies %d", 10008, n)
	}
	if err := copySparse(from, to); !errors.Is(err, os.ErrExist) {
		t.Errorf("copy over a file: %v, want ErrExist", err)
	}
}

func TestGuestExit(t *testing.T) {
	for _, c := range []struct {
		name, run, reason, console string
		stopping                   bool
		want                       vm.ExitReason
		detail                     string
	}{
		{name: "powers off", run: runShutdown, reason: "guest-shutdown", want: vm.ExitGuest, detail: "powered off"},
		{name: "reboots", run: runShutdown, reason: "guest-reset", want: vm.ExitGuest, detail: "rebooted"},
		{name: "stopped", run: runShutdown, reason: "guest-shutdown", stopping: true, want: vm.ExitStopped},
		{name: "event missed", run: runShutdown, want: vm.ExitGuest},
		{name: "panic device", run: runPanicked, want: vm.ExitCrashed},
		{name: "panic and reboot", run: runShutdown, reason: "guest-reset", console: "x\nKernel panic - not syncing: boom\r\nmore", want: vm.ExitCrashed, detail: "not syncing: boom"},
		{name: "panic while stopping", run: runShutdown, reason: "guest-reset", console: "Kernel panic - not syncing: boom", stopping: true, want: vm.ExitCrashed},
		{name: "prints a panic, powers off", run: runShutdown, reason: "guest-shutdown", console: "Kernel panic - not syncing: a lie", want: vm.ExitGuest},
		{name: "hypervisor's error", run: runInternal, want: vm.ExitCrashed},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := guestExit(c.run, c.reason, c.stopping, c.console)
			if got.Reason != c.want || !strings.Contains(got.Detail, c.detail) || got.Detail == "" {
				t.Errorf("exit is %+v, want reason %q and detail with %q", got, c.want, c.detail)
			}
		})
	}
	if got := guestExit(runPanicked, "", false, "Kernel panic - not syncing: "+strings.Repeat("x", 1<<20)); len(got.Detail) > maxDetailBytes {
		t.Errorf("the guest made a detail of %d bytes", len(got.Detail))
	}
}

func TestTailIsBounded(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := collect(r)
	for range 100 {
		if _, err := w.WriteString(strings.Repeat("noise\n", 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.WriteString("last\xff words"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	<-c.done
	c.Close()
	if got := c.String(); len(got) > 2*maxDetailBytes || !strings.HasSuffix(got, "last? words") {
		t.Errorf("kept %d bytes ending in %q", len(got), got[max(0, len(got)-20):])
	}
}

func TestReadTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	if got, err := readTail(path, 10); err != nil || len(got) != 0 {
		t.Errorf("of no file: %q, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]string{4: "cdef", 16: "0123456789abcdef", 100: "0123456789abcdef"} {
		if got, err := readTail(path, limit); err != nil || string(got) != want {
			t.Errorf("last %d bytes: %q, %v, want %q", limit, got, err, want)
		}
	}
}

func TestCPUIdentity(t *testing.T) {
	const info = "processor\t: 0\nvendor_id\t: V\nmodel name\t: M\nstepping\t: 1\ncpu MHz\t\t: %d\nflags\t\t: a b\n\nprocessor\t: 1\nmodel name\t: other\n"
	first, second := cpuIdentity(fmt.Sprintf(info, 1000)), cpuIdentity(fmt.Sprintf(info, 2000))
	if first != "V|M|1|a b" || first != second {
		t.Errorf("identity is %q and %q, want one that ignores frequency and other processors", first, second)
	}
}

func TestRecordKeepsIdentity(t *testing.T) {
	want := record{Version: recordVersion, ID: "a", Created: time.Unix(1, 0).UTC(), Ready: true, Process: identity{PID: 7, StartTicks: 8, Boot: "b", Executable: "/x"}}
	dir := t.TempDir()
	if err := writeJSON(dir, recordFile, want); err != nil {
		t.Fatal(err)
	}
	var got record
	if err := readJSON(dir, recordFile, &got); err != nil || got.Process != want.Process {
		t.Errorf("identity is %+v, %v, want %+v", got.Process, err, want.Process)
	}
}
