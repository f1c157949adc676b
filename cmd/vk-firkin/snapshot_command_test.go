// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// snapshotHost is a state directory with one snapshot and, when asked, a machine.
type snapshotHost struct {
	root   string
	key    string
	driver *snapshottest.Driver
	store  *snapshot.Store // nil when closed
}

func newSnapshotHost(t *testing.T, machine bool) *snapshotHost {
	t.Helper()
	h := &snapshotHost{root: t.TempDir(), driver: snapshottest.New()}
	store, err := snapshot.Open(t.Context(), filepath.Join(h.root, "snapshots"), snapshot.Options{Driver: h.driver, MinFreeBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	h.store = store
	t.Cleanup(func() { _ = store.Close() })
	spec := snapshot.Spec{
		Kind:  snapshot.KindBase,
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Kit:   vm.Kit{Arch: "amd64", Digest: "sha256:" + strings.Repeat("a", 64), Kernel: "/k", Initramfs: "/i", Scratch: "/s"},
	}
	ref, _, err := store.Ensure(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Release()
	h.key = ref.Key()
	if machine {
		r, err := store.Restore(t.Context(), ref, "m1", vm.Config{Shape: spec.Shape, Kit: spec.Kit}, snapshot.RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Guest.Close()
	}
	return h
}

func (h *snapshotHost) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := newSnapshotCommand(
		func() (string, error) { return h.root, nil },
		func(context.Context) (vm.Driver, error) { return h.driver, nil },
	)
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestSnapshotCommandBesideANode(t *testing.T) {
	h := newSnapshotHost(t, true)
	short := h.key[:12]
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"ls"}, short + "   base   1x256Mi   ready"},
		{[]string{"ls", "-o", "name"}, h.key + "\n"},
		{[]string{"ls", "-o", "json"}, `"machines": [`},
		{[]string{"inspect", short}, `"name": "seal.key"`},
		{[]string{"verify"}, short + "  ok, 4 files"},
		{nil, "vk-firkin snapshot ls"},
	} {
		out, err := h.run(t, c.args...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%v: %v\n%s", c.args, err, out)
		}
	}
	if _, err := h.run(t, "rm", short); !errors.Is(err, snapshot.ErrLocked) {
		t.Errorf("rm beside a node: %v", err)
	}
	out, err := h.run(t, "ls", "-o", "json")
	var infos []snapshot.Info
	if err != nil || json.Unmarshal([]byte(out), &infos) != nil || len(infos) != 1 || infos[0].Key != h.key {
		t.Errorf("json: %v\n%s", err, out)
	}
}

func TestSnapshotCommandShowsTemplates(t *testing.T) {
	h := newSnapshotHost(t, false)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, []byte("disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	ref, _, err := h.store.Ensure(t.Context(), snapshot.Spec{
		Kind:  snapshot.KindTemplate,
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Kit:   vm.Kit{Arch: "amd64", Digest: "sha256:" + strings.Repeat("a", 64), Kernel: "/k", Initramfs: "/i", Scratch: "/s"},
		Template: &snapshot.TemplateSpec{Namespace: "team", Name: "web", Revision: "r1", Images: []snapshot.TemplateImage{
			{Ref: "app:1", Digest: "sha256:" + strings.Repeat("b", 64), Path: disk},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ref.Release()
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"ls"}, []string{ref.Key()[:12] + "   template   1x256Mi   ready", "team/web"}},
		{[]string{"inspect", ref.Key()}, []string{`"namespace": "team"`, `"ref": "app:1"`, `"revision": "r1"`}},
	} {
		out, err := h.run(t, c.args...)
		for _, want := range c.want {
			if err != nil || !strings.Contains(out, want) {
				t.Errorf("%v: %v, want %q in\n%s", c.args, err, want, out)
			}
		}
	}
}

func TestSnapshotCommandChanges(t *testing.T) {
	h := newSnapshotHost(t, true)
	if err := h.store.Close(); err != nil {
		t.Fatal(err)
	}
	short := h.key[:12]
	if _, err := h.run(t, "rm", short); !errors.Is(err, snapshot.ErrInUse) || !strings.Contains(err.Error(), "m1") {
		t.Errorf("rm of what a machine needs: %v", err)
	}
	if err := h.driver.Machine("m1").Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	memory := filepath.Join(h.root, "snapshots", h.key, "machine", "scratch")
	data, err := os.ReadFile(memory)
	if err != nil {
		t.Fatal(err)
	}
	data[0]++
	if err := os.WriteFile(memory, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := h.run(t, "verify"); err == nil || !strings.Contains(out, "DAMAGED") || !strings.Contains(out, "scratch") {
		t.Errorf("verify: %v\n%s", err, out)
	}
	if out, err := h.run(t, "rm", short); err != nil || !strings.Contains(out, "removed") {
		t.Errorf("rm: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"ls"}, {"ls", "-o", "name"}, {"ls", "-o", "json"}, {"verify"}} {
		if _, err := h.run(t, args...); err != nil {
			t.Errorf("%v of an empty store: %v", args, err)
		}
	}
	for _, args := range [][]string{{"rm", "none"}, {"inspect", "none"}, {"verify", "none"}, {"rm"}, {"inspect"}, {"ls", "-o", "yaml"}} {
		if _, err := h.run(t, args...); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
