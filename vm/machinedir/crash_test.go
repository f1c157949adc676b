// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

const testRecord = "machine.json"

// machineRecord is what drivers keep of a machine, as far as this package is concerned.
type machineRecord struct {
	Version int
	Ready   bool
	Config  vm.Config        `json:"config"`
	Process process.Identity `json:"process,omitzero"`
}

// life is the process of a machine, which runs until it is killed, or until it ends.
type life struct {
	cmd   *exec.Cmd
	stdin io.Closer
	ended chan struct{}
}

// begin starts one that works in dir, and is known by that on Linux, by its arguments on macOS.
func begin(t *testing.T, dir string) *life {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read x; :", "sh", dir)
	cmd.Dir = dir
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := &life{cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	go func() {
		defer close(l.ended)
		_ = cmd.Wait() // killed, or not
	}()
	t.Cleanup(l.end)
	return l
}

// end ends it, if it has not.
func (l *life) end() {
	_ = l.stdin.Close()
	<-l.ended
}

// program is what such a process runs.
func program(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("sh")
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// make makes a machine as drivers do; what it leaves when it fails is for its caller.
func makeMachine(t *testing.T, r *Registry[*fakeMachine], id string) (l *life, err error) {
	t.Helper()
	release, err := r.Claim(id)
	if err != nil {
		return nil, err
	}
	defer release()
	record := machineRecord{Version: 1, Config: vm.Config{Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}}}
	if err := WriteJSON(r.FS, r.Dir(id), testRecord, record); err != nil {
		return nil, err
	}
	l = begin(t, r.Dir(id))
	p, err := process.Open(l.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	record.Ready, record.Process = true, p.Identity()
	return l, NoteJSON(r.FS, r.Dir(id), testRecord, record)
}

// TestCrashAtEveryCall: the process that makes a machine, or removes one, dies at any call to
// the disk, or the host does. The next one finds no machine, or a whole one, or one that it
// knows was never finished and can remove, with its process; nothing else.
func TestCrashAtEveryCall(t *testing.T) {
	sh := program(t)
	for name, remove := range map[string]bool{"make": false, "remove": true} {
		t.Run(name, func(t *testing.T) {
			least := 9
			if remove {
				least = 1
			}
			durabletest.Every(t, durabletest.Crashes, least, func(t *testing.T, disk *durabletest.FS, dir string) {
				r := NewRegistry[*fakeMachine](dir)
				var l *life
				var err error
				if remove {
					if l, err = makeMachine(t, r, "m"); err != nil {
						t.Fatal(err)
					}
					r.FS = disk
					err = r.Remove("m", sh)
				} else {
					r.FS = disk
					l, err = makeMachine(t, r, "m")
				}
				if (err != nil) != disk.Reached() {
					t.Fatalf("%v", err)
				}
				if l != nil && strings.Contains(t.Name(), "losing") {
					l.end() // with its host
				}
				disk.Restart(t)

				next := NewRegistry[*fakeMachine](dir)
				ids, err := next.List(t.Context())
				if err != nil || len(ids) > 1 {
					t.Fatalf("machines %v, %v", ids, err)
				}
				for _, id := range ids {
					var record machineRecord
					err := ReadVersioned(next.FS, next.Dir(id), testRecord, 1, &record)
					if err == nil && record.Ready {
						p, perr := process.Find(record.Process)
						if perr == nil {
							p.Close()
						} else if !errors.Is(perr, process.ErrGone) {
							t.Error(perr)
						}
					} else if unknown := next.Unfinished(id, err); unknown != nil {
						t.Errorf("with record %+v, %v: %v", record, err, unknown)
					}
					if err := next.Remove(id, sh); err != nil {
						t.Error(err)
					}
				}
				if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
					t.Errorf("left: %v, %v", left, err)
				}
				if l != nil && len(ids) > 0 {
					<-l.ended // killed, or it would go on
				}
			})
		})
	}
}

// TestUnreadable: of a machine whose own record cannot be read nothing can be had but its end,
// and that only when its process is known to be its own.
func TestUnreadable(t *testing.T) {
	sh := program(t)
	for name, text := range map[string]string{"newer": `{"version":9,"config":{"Shape":{"VCPUs":1,"MemoryBytes":268435456}}}`, "damaged": `{"version":1,`} {
		r := NewRegistry[*fakeMachine](t.TempDir())
		dir := r.Dir("m")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, testRecord), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		l := begin(t, dir)
		load := func(sh string) (m vm.Unreadable) {
			t.Helper()
			_, err := r.Load(t.Context(), "m", func() (*fakeMachine, func(), error) {
				err := ReadVersioned(r.FS, dir, testRecord, 1, &machineRecord{})
				if !errors.Is(err, vm.ErrUnavailable) {
					err = r.Unfinished("m", err)
				}
				return nil, nil, err
			})
			if !errors.Is(err, vm.ErrUnreadable) || !errors.Is(err, vm.ErrUnavailable) {
				t.Fatalf("%s: load: %v", name, err)
			}
			return r.Unreadable("m", testRecord, sh, err)
		}
		m := load(sh)
		_, state := m.State(t.Context())
		_, dial := m.DialGuest(t.Context(), 1)
		_, wait := m.Wait(t.Context())
		for _, err := range []error{m.Unreadable(), state, dial, wait, m.Resume(t.Context()), m.Stop(t.Context(), 0)} {
			if !errors.Is(err, vm.ErrUnreadable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if shape := m.(vm.Describer).Config().Shape; (shape.VCPUs == 1) != (name == "newer") {
			t.Errorf("%s: it has shape %v", name, shape)
		}
		// Another program works there: a shell of somebody who looks around.
		err := load("/usr/bin/hypervisor").Delete(t.Context())
		if !errors.Is(err, vm.ErrUnavailable) || !strings.Contains(err.Error(), sh) || !strings.Contains(err.Error(), "kill ") {
			t.Errorf("%s: delete beside another program: %v", name, err)
		}
		select {
		case <-l.ended:
			t.Errorf("%s: it was killed", name)
		default:
		}
		if _, err := os.Stat(filepath.Join(dir, testRecord)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for range 2 {
			if err := m.Delete(t.Context()); err != nil {
				t.Errorf("%s: delete: %v", name, err)
			}
		}
		<-l.ended
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: its directory: %v", name, err)
		}
		if _, err := r.Load(t.Context(), "m", nil); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("%s: load afterwards: %v", name, err)
		}
	}
}
