// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

func TestRecords(t *testing.T) {
	dir := newDirectory(filepath.Join(t.TempDir(), "warm"), durable.Host)
	if records, bad, err := dir.load(); err != nil || len(records)+len(bad) != 0 {
		t.Fatalf("%v, %v, %v", records, bad, err)
	}
	r := record{
		Machine: "warm-1", Request: "pod", PodUID: "uid", Pool: "ns/a", Namespace: "ns", Name: "a", Revision: "r1", Shape: smallShape,
		Images: []SlotImage{{Ref: "a:1", Digest: "sha256:1", DiskPath: "/images/1"}}, Created: time.Unix(1, 2).UTC(),
		Warm: Budget{MemoryBytes: 1}, Active: Budget{MilliCPU: 2, MemoryBytes: 3, DiskBytes: 4, Slots: 5},
	}
	golden := `{"kind":"warm-machine","version":1,"machine":"warm-1","request":"pod","podUID":"uid","pool":"ns/a","namespace":"ns","name":"a","revision":"r1","shape":{"vcpus":1,"memoryBytes":268435456},` +
		`"images":[{"ref":"a:1","digest":"sha256:1","diskPath":"/images/1"}],"created":"1970-01-01T00:00:01.000000002Z","warm":{"milliCPU":0,"memoryBytes":1,"diskBytes":0},"active":{"milliCPU":2,"memoryBytes":3,"diskBytes":4,"slots":5}}`
	if err := dir.write(r); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir.Dir, "warm-1.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(golden, string(data)); diff != "" {
		t.Errorf("on disk (-want +got):\n%s", diff)
	}
	for name, content := range map[string]string{
		"warm-2.json": golden, "warm-3.json": "{", "warm-4.json": `{"version":2,"request":"pod-4","active":{"memoryBytes":7},"warm":{"memoryBytes":-7}}`, ".tmp-warm-5": "half", "note.txt": "of a user",
		"warm-6.json": `{"version":1,"machine":"warm-6","namespace":"","name":"","revision":"","shape":{"vcpus":1,"memoryBytes":268435456},"created":"1970-01-01T00:00:01Z","warm":{"milliCPU":-1,"memoryBytes":1,"diskBytes":0},"active":{"milliCPU":0,"memoryBytes":0,"diskBytes":0}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// As it was before records said their kind.
	old := strings.ReplaceAll(strings.Replace(golden, `"kind":"warm-machine",`, "", 1), "warm-1", "warm-7")
	if err := os.WriteFile(filepath.Join(dir.Dir, "warm-7.json"), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	records, bad, err := dir.load()
	if err != nil {
		t.Error(err)
	}
	unreadable := map[string]string{}
	for _, b := range bad {
		unreadable[b.machine] = b.err.Error()
		guess := record{}
		if b.machine == "warm-4" {
			guess = record{Request: "pod-4", Active: Budget{MemoryBytes: 7}}
		}
		if b.machine == "warm-2" {
			guess = record{Request: r.Request, Warm: r.Warm, Active: r.Active}
		}
		if diff := cmp.Diff(guess, b.guess, cmp.AllowUnexported(record{})); diff != "" && b.machine != "warm-6" {
			t.Errorf("guessed of %s (-want +got):\n%s", b.machine, diff)
		}
	}
	for machine, why := range map[string]string{"warm-2": `it is of "warm-1"`, "warm-3": "unexpected", "warm-4": "written by a newer vk-firkin (version 2 of a warm-machine record, this one reads up to 1)", "warm-6": "absurd"} {
		if !strings.Contains(unreadable[machine], why) {
			t.Errorf("%s: %q, want %q", machine, unreadable[machine], why)
		}
	}
	if len(bad) != 4 {
		t.Errorf("unreadable: %v", unreadable)
	}
	r.Header = durable.Header{Kind: "warm-machine", Version: 1}
	r7 := r
	r7.Machine = "warm-7"
	if diff := cmp.Diff([]record{r, r7}, records, cmp.AllowUnexported(record{})); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	left, err := os.ReadDir(dir.Dir)
	if err != nil || len(left) != 7 { // what cannot be read stays
		t.Errorf("left %v, %v", left, err)
	}
	for range 2 {
		if err := errors.Join(dir.remove("warm-1"), dir.remove("warm-3")); err != nil {
			t.Error(err)
		}
	}
	if err := dir.write(record{Machine: "warm-4", Pool: "ns/a", Shape: smallShape}); !errors.Is(err, durable.ErrNewer) {
		t.Errorf("what a newer vk-firkin wrote was replaced: %v", err)
	}
}

// TestRecordsAtEveryFault: an entry is written, checked out, and its record removed, with a
// fault at every operation. The next process reads what was acknowledged or what was being
// written, and nothing is left when the machine is gone.
func TestRecordsAtEveryFault(t *testing.T) {
	modes := []durabletest.Mode{durabletest.EIO, durabletest.Full, durabletest.Crash, durabletest.CrashLosingData, durabletest.CrashLosingNames}
	durabletest.Every(t, modes, 12, func(t *testing.T, disk *durabletest.FS, dir string) {
		dir = filepath.Join(dir, "warm")
		warm := record{Machine: "warm-1", Pool: "ns/a", Shape: smallShape}
		leased := warm
		leased.Request = "pod"
		d := newDirectory(dir, disk)
		wrote := d.write(warm)
		bound := d.write(leased)
		removed := d.remove("warm-1")
		disk.Restart(t)

		d = newDirectory(dir, durabletest.New(t, durable.Host, dir, durabletest.Fault{}))
		records, bad, err := d.load()
		if err != nil || len(bad) != 0 || len(records) > 1 {
			t.Fatalf("%+v, %+v, %v", records, bad, err)
		}
		switch {
		case len(records) == 0 && wrote == nil && bound != nil && disk.Dead(): // its removal was not begun
			t.Errorf("it is gone after %v", bound)
		case len(records) == 1 && removed == nil:
			t.Errorf("it is there after it was removed: %+v", records)
		case len(records) == 1 && bound == nil && records[0].Request != "pod":
			t.Errorf("it was checked out, and is warm: %+v", records)
		}
		if err := d.remove("warm-1"); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(dir); err == nil && len(left) != 0 {
			t.Errorf("left %v", left)
		}
	})
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"machine":"warm-1","pool":"ns/a","namespace":"ns","name":"a","revision":"r1","shape":{"vcpus":1,"memoryBytes":268435456},"created":"1970-01-01T00:00:01Z","warm":{"milliCPU":0,"memoryBytes":1,"diskBytes":0},"active":{"milliCPU":0,"memoryBytes":0,"diskBytes":0}}`))
	f.Add([]byte(`{"kind":"warm-machine","version":1,"machine":"warm-1","request":"pod","namespace":"","name":"","revision":"","shape":{"vcpus":1,"memoryBytes":268435456},"created":"1970-01-01T00:00:01Z","warm":{"milliCPU":0,"memoryBytes":1,"diskBytes":0},"active":{"milliCPU":0,"memoryBytes":0,"diskBytes":0}}`))
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := recordFormat.Decode(data)
		if err != nil {
			if !durable.Unusable(err) {
				t.Error(err)
			}
			guessRecord(data)
			return
		}
		if vm.ValidateID(r.Machine) != nil || r.Warm.validate() != nil || r.Active.validate() != nil || r.Request == "" && r.Pool == "" {
			t.Errorf("accepted %+v", r)
		}
	})
}
