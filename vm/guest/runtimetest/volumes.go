// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// put makes a volume, which goes with the test.
func put(t *testing.T, s *Subject, m *agentv1.PutVolumeRequest, files ...*agentv1.File) {
	t.Helper()
	if _, err := s.Client.Volumes.PutVolume(t.Context(), connect.NewRequest(m)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.Client.Volumes.RemoveVolume(context.WithoutCancel(t.Context()), connect.NewRequest(&agentv1.RemoveVolumeRequest{Name: m.GetName()})); err != nil {
			t.Error(err)
		}
	})
	if files != nil {
		write(t, s, m.GetName(), files...)
	}
}

func write(t *testing.T, s *Subject, volume string, files ...*agentv1.File) {
	t.Helper()
	if _, err := s.Client.Volumes.WriteFiles(t.Context(), connect.NewRequest(&agentv1.WriteFilesRequest{Volume: volume, Files: files})); err != nil {
		t.Fatal(err)
	}
}

func volumes(t *testing.T, s *Subject) {
	put(t, s, &agentv1.PutVolumeRequest{Name: "disk"})
	put(t, s, &agentv1.PutVolumeRequest{Name: "cfg"},
		&agentv1.File{Path: "a", Data: []byte("alpha"), Mode: 0o644}, &agentv1.File{Path: "dir/b", Data: []byte("beta"), Mode: 0o400})
	disk, cfg := s.At("v", "disk"), s.At("v", "cfg")
	mounts := []*agentv1.Mount{{Volume: "disk", Target: disk}, {Volume: "cfg", Target: cfg, ReadOnly: true}}
	m := Sh(`cat "$CFG/a" "$CFG/dir/b"; echo; echo kept > "$DISK/x"; while [ "$(cat "$CFG/a")" = alpha ]; do sleep 0.05; done; cat "$CFG/a"`)
	m.Env, m.Mounts = []string{"CFG=" + cfg, "DISK=" + disk}, mounts
	s.Run(t, "first", m)
	if line := s.firstLine(t, "first"); line != "alphabeta" {
		t.Errorf("first output %q", line)
	}
	// What changes in a volume is seen by whoever runs.
	write(t, s, "cfg", &agentv1.File{Path: "a", Data: []byte("omega"), Mode: 0o644})
	r, err := s.output(t.Context(), "first")
	if err != nil || r.Out != "alphabeta\nomega" {
		t.Errorf("%q %q %v", r.Out, r.Err, err)
	}
	// Another container of the pod has the same volumes, on the same paths and others.
	m = Sh(`cat "$DISK/x" "$OTHER/x"; ls "$CFG"`)
	m.Env = []string{"CFG=" + cfg, "DISK=" + disk, "OTHER=" + s.At("other")}
	m.Mounts = append(slices.Clone(mounts), &agentv1.Mount{Volume: "disk", Target: s.At("other")})
	if r, err := s.Try(t, m); err != nil || r.Out != "kept\nkept\na\n" {
		t.Errorf("%q %q %v", r.Out, r.Err, err)
	}
	if s.Features.ReadOnly {
		m = Sh(`echo y > "$CFG/a"`)
		m.Env, m.Mounts = []string{"CFG=" + cfg}, mounts
		if r, err := s.Try(t, m); err != nil || !strings.Contains(r.Err, "Read-only file system") {
			t.Errorf("%q %v", r.Err, err)
		}
	}
	memory := &agentv1.PutVolumeRequest{Name: "mem", Memory: true, SizeLimitBytes: 1 << 20}
	if !s.Features.MemoryVolumes {
		if _, err := s.Client.Volumes.PutVolume(t.Context(), connect.NewRequest(memory)); err == nil {
			t.Error("a memory volume was made where there are none")
		}
		return
	}
	put(t, s, memory)
	m = Sh(`dd if=/dev/zero of="$MEM/big" bs=1024 count=2048`)
	m.Env, m.Mounts = []string{"MEM=" + s.At("mem")}, []*agentv1.Mount{{Volume: "mem", Target: s.At("mem")}}
	if r, err := s.Try(t, m); err != nil || !strings.Contains(r.Err, "No space left") {
		t.Errorf("%q %v", r.Err, err)
	}
}

func subPaths(t *testing.T, s *Subject) {
	put(t, s, &agentv1.PutVolumeRequest{Name: "cfg"}, &agentv1.File{Path: "a", Data: []byte("alpha\n"), Mode: 0o644})
	put(t, s, &agentv1.PutVolumeRequest{Name: "disk"})
	m := Sh(`cat "$ONE"; echo in > "$SUB/in"; cat "$DISK/deep/er/in"; ln -s / "$DISK/out"`)
	m.Env = []string{"ONE=" + s.At("one"), "SUB=" + s.At("sub"), "DISK=" + s.At("disk")}
	m.Mounts = []*agentv1.Mount{
		{Volume: "cfg", SubPath: "a", Target: s.At("one"), ReadOnly: true},
		{Volume: "disk", SubPath: "deep/er", Target: s.At("sub")}, {Volume: "disk", Target: s.At("disk")},
	}
	if s.Features.OwnRoot {
		m.Args[2] = strings.Replace(m.Args[2], "ln -s", "/bin/busybox ln -s", 1)
	}
	if r, err := s.Try(t, m); err != nil || r.Out != "alpha\nin\n" || r.GetExitCode() != 0 {
		t.Fatalf("%q %q %v %v", r.Out, r.Err, r.ContainerStatus, err)
	}
	// A link out of the volume leads to the volume's own root, or nowhere.
	m = Sh(`ls "$ESC"`)
	m.Env = []string{"ESC=" + s.At("esc")}
	m.Mounts = []*agentv1.Mount{{Volume: "disk", SubPath: "out", Target: s.At("esc")}}
	r, err := s.Try(t, m)
	if err != nil {
		if connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("a sub_path that leads out: %v", err)
		}
	} else if !strings.Contains(r.Out, "deep") || strings.Contains(r.Out, "dev") {
		t.Errorf("a sub_path that leads out: %q", r.Out)
	}
}

// layers: what one container leaves in a named layer, the next finds in it or below; what
// it writes elsewhere goes with it where it has a root of its own.
func layers(t *testing.T, s *Subject) {
	file := s.At("left")
	m := Sh(`echo layer > ` + file)
	m.WritableLayer = "suite"
	if r, err := s.Try(t, m); err != nil || r.GetExitCode() != 0 {
		t.Fatalf("%q %v %v", r.Err, r.ContainerStatus, err)
	}
	in, below := Sh(`cat `+file), Sh(`cat `+file)
	in.WritableLayer, below.LowerLayers = "suite", []string{"suite"}
	for i, m := range []*agentv1.CreateContainerRequest{in, below} {
		if r, err := s.Try(t, m); err != nil || r.Out != "layer\n" {
			t.Errorf("container %d: %q %q %v", i, r.Out, r.Err, err)
		}
	}
	r, err := s.Try(t, Sh(`cat `+file))
	if err != nil || (r.GetExitCode() == 0) == s.Features.OwnRoot {
		t.Errorf("without the layer: %q %q %v %v", r.Out, r.Err, r.ContainerStatus, err)
	}
}
