// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

const (
	maxVolumes = 256
	maxFiles   = 4096
)

// volumes keeps the pod's volumes, each a directory, and serves VolumeService.
type volumes struct {
	dir     string
	runtime Runtime

	mu    sync.Mutex
	table map[string]*volume // guarded by mu
}

type volume struct {
	volumeSpec
	// mounted: a tmpfs is on dir.
	mounted bool
	archive archiveState
}

// volumeSpec is what PutVolume asked for.
type volumeSpec struct {
	dir     string
	memory  bool
	size    int64
	fsGroup int64 // -1: none
}

var _ agentv1connect.VolumeServiceHandler = (*volumes)(nil)

func newVolumes(dir string, runtime Runtime) *volumes {
	return &volumes{dir: dir, runtime: runtime, table: map[string]*volume{}}
}

// dirOf is the directory of a volume that exists.
func (vs *volumes) dirOf(name string) (string, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v := vs.table[name]
	if v == nil {
		return "", connect.NewError(connect.CodeNotFound, fmt.Errorf("volume %q does not exist", name))
	}
	return v.dir, nil
}

// PutVolume implements agentv1connect.VolumeServiceHandler, like the methods below.
func (vs *volumes) PutVolume(_ context.Context, req *connect.Request[agentv1.PutVolumeRequest]) (*connect.Response[agentv1.PutVolumeResponse], error) {
	m := req.Msg
	if err := checkName("name", m.GetName()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if m.GetSizeLimitBytes() < 0 || m.FsGroup != nil && (*m.FsGroup < 0 || *m.FsGroup > 1<<31-1) {
		return nil, invalid("size_limit_bytes or fs_group of volume %q is out of range", m.GetName())
	}
	v := volume{volumeSpec: volumeSpec{dir: filepath.Join(vs.dir, m.GetName()), memory: m.GetMemory(), size: m.GetSizeLimitBytes(), fsGroup: -1}}
	if m.FsGroup != nil {
		v.fsGroup = *m.FsGroup
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if have := vs.table[m.GetName()]; have != nil {
		if have.volumeSpec != v.volumeSpec {
			return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("volume %q exists with another specification", m.GetName()))
		}
		return connect.NewResponse(&agentv1.PutVolumeResponse{}), nil
	}
	if len(vs.table) >= maxVolumes {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the machine has %d volumes", len(vs.table)))
	}
	if err := vs.make(&v); err != nil {
		return nil, internal(fmt.Sprintf("make volume %q", m.GetName()), err)
	}
	vs.table[m.GetName()] = &v
	return connect.NewResponse(&agentv1.PutVolumeResponse{}), nil
}

// make makes the volume's directory, or nothing.
func (vs *volumes) make(v *volume) (err error) {
	if err := os.Mkdir(v.dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(v.dir))
		}
	}()
	if v.memory {
		if err := vs.runtime.MountTmpfs(v.dir, v.size); err != nil {
			return err
		}
		v.mounted = true
		defer func() {
			if err != nil {
				err = errors.Join(err, vs.runtime.Unmount(v.dir))
			}
		}()
	}
	// The kubelet's modes for an emptyDir: anyone may write, as the containers may
	// run as any user.
	mode := os.FileMode(0o777)
	if v.fsGroup >= 0 {
		if err := os.Chown(v.dir, -1, int(v.fsGroup)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(v.dir, mode)
}

func (vs *volumes) WriteFiles(_ context.Context, req *connect.Request[agentv1.WriteFilesRequest]) (*connect.Response[agentv1.WriteFilesResponse], error) {
	if err := checkFiles(req.Msg.GetFiles()); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v := vs.table[req.Msg.GetVolume()]
	if v == nil {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("volume %q does not exist", req.Msg.GetVolume()))
	}
	changed, err := writeFiles(v.dir, v.fsGroup, req.Msg.GetFiles())
	if err != nil {
		return nil, internal(fmt.Sprintf("write files of volume %q", req.Msg.GetVolume()), err)
	}
	return connect.NewResponse(&agentv1.WriteFilesResponse{Changed: changed}), nil
}

// checkFiles checks the paths of files: local, clean, and none the parent of another.
func checkFiles(files []*agentv1.File) error {
	if len(files) > maxFiles {
		return fmt.Errorf("files has %d entries, at most %d are allowed", len(files), maxFiles)
	}
	names := map[string]bool{}
	for i, f := range files {
		p := f.GetPath()
		switch {
		case !filepath.IsLocal(p) || filepath.Clean(p) != p || p == "." || strings.ContainsRune(p, 0) || !utf8.ValidString(p):
			return fmt.Errorf("files[%d].path is %q, want a clean relative path", i, p)
		case strings.HasPrefix(p, ".."):
			return fmt.Errorf("files[%d].path is %q: names that begin with two dots are the volume's own", i, p)
		case f.GetMode()&^0o777 != 0:
			return fmt.Errorf("files[%d].mode is %#o, want permission bits", i, f.GetMode())
		case f.Uid != nil && (*f.Uid < 0 || *f.Uid > 1<<31-1):
			return fmt.Errorf("files[%d].uid is %d", i, *f.Uid)
		case names[p]:
			return fmt.Errorf("files[%d].path %q is there twice", i, p)
		}
		names[p] = true
	}
	for p := range names {
		for d := filepath.Dir(p); d != "."; d = filepath.Dir(d) {
			if names[d] {
				return fmt.Errorf("file %q lies in %q, which is a file too", p, d)
			}
		}
	}
	return nil
}

func (vs *volumes) RemoveVolume(_ context.Context, req *connect.Request[agentv1.RemoveVolumeRequest]) (*connect.Response[agentv1.RemoveVolumeResponse], error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	name := req.Msg.GetName()
	v := vs.table[name]
	if v == nil {
		return connect.NewResponse(&agentv1.RemoveVolumeResponse{}), nil
	}
	if v.archive == archiveBusy {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("volume %q is being filled", name))
	}
	if v.mounted {
		if err := vs.runtime.Unmount(v.dir); err != nil {
			return nil, internal(fmt.Sprintf("remove volume %q", name), err)
		}
		v.mounted = false // a second call must not unmount again
	}
	if err := os.RemoveAll(v.dir); err != nil {
		return nil, internal(fmt.Sprintf("remove volume %q", name), err)
	}
	delete(vs.table, name)
	return connect.NewResponse(&agentv1.RemoveVolumeResponse{}), nil
}
