// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Names of the kubelet's layout for volumes that are replaced in one step
// (k8s.io/kubernetes/pkg/volume/util/atomic_writer.go documents it):
//
//	..data                 -> ..2026_01_02_15_04_05.123456789
//	..2026_01_02_...       the files
//	name                   -> ..data/name, for each first element of a path
//
// Programs of users watch for the rename of ..data.
const (
	dataLink    = "..data"
	dataNewLink = "..data_tmp"
	dataPrefix  = "..2006_01_02_15_04_05."
)

// writeFiles replaces the content of dir with files and reports whether it differed.
// fsGroup below zero is none. Containers may have dir mounted, and a container's
// root may have changed anything in it: all names are resolved below dir.
func writeFiles(dir string, fsGroup int64, files []*agentv1.File) (bool, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return false, err
	}
	defer func() { _ = root.Close() }()

	old, err := root.Readlink(dataLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if old != "" && (filepath.Base(old) != old || !strings.HasPrefix(old, "..2")) {
		old = "" // not ours
	}
	if old != "" && sameFiles(root, old, fsGroup, files) {
		return false, nil
	}
	stamp := time.Now().UTC()
	next := stamp.Format(dataPrefix) + fmt.Sprintf("%09d", stamp.Nanosecond())
	if err := writeTree(root, next, fsGroup, files); err != nil {
		return false, errors.Join(err, root.RemoveAll(next))
	}
	if err := root.RemoveAll(dataNewLink); err != nil {
		return false, errors.Join(err, root.RemoveAll(next))
	}
	if err := root.Symlink(next, dataNewLink); err != nil {
		return false, errors.Join(err, root.RemoveAll(next))
	}
	if err := root.Rename(dataNewLink, dataLink); err != nil {
		return false, errors.Join(err, root.RemoveAll(next))
	}
	return true, tidy(root, next, files)
}

// writeTree writes files below the new directory name.
func writeTree(root *os.Root, name string, fsGroup int64, files []*agentv1.File) error {
	own := func(p string, uid int) error {
		if uid < 0 && fsGroup < 0 {
			return nil
		}
		return root.Lchown(p, uid, int(max(fsGroup, -1)))
	}
	if err := root.Mkdir(name, 0o755); err != nil {
		return err
	}
	if err := errors.Join(root.Chmod(name, 0o755), own(name, -1)); err != nil {
		return err
	}
	made := map[string]bool{".": true}
	for _, f := range files {
		var parents []string
		for d := filepath.Dir(f.GetPath()); !made[d]; d = filepath.Dir(d) {
			parents = append(parents, d)
			made[d] = true
		}
		for i := len(parents) - 1; i >= 0; i-- {
			p := filepath.Join(name, parents[i])
			if err := errors.Join(root.Mkdir(p, 0o755), root.Chmod(p, 0o755), own(p, -1)); err != nil {
				return err
			}
		}
		p := filepath.Join(name, f.GetPath())
		if err := root.WriteFile(p, f.GetData(), 0o600); err != nil {
			return err
		}
		uid := -1
		if f.Uid != nil {
			uid = int(*f.Uid)
		}
		if err := errors.Join(own(p, uid), root.Chmod(p, modeOf(f, fsGroup))); err != nil {
			return err
		}
	}
	return nil
}

// modeOf is the mode of a file in a volume with a group: what the owner reads, the
// group does.
func modeOf(f *agentv1.File, fsGroup int64) os.FileMode {
	mode := os.FileMode(f.GetMode())
	if fsGroup >= 0 {
		mode |= mode & 0o400 >> 3
	}
	return mode
}

// sameFiles reports whether the tree holds exactly files.
func sameFiles(root *os.Root, name string, fsGroup int64, files []*agentv1.File) bool {
	for _, f := range files {
		p := filepath.Join(name, f.GetPath())
		st, err := root.Lstat(p)
		if err != nil || !st.Mode().IsRegular() || st.Size() != int64(len(f.GetData())) || st.Mode().Perm() != modeOf(f, fsGroup) {
			return false
		}
		if data, err := root.ReadFile(p); err != nil || !bytes.Equal(data, f.GetData()) {
			return false
		}
	}
	n := 0
	err := fs.WalkDir(root.FS(), name, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	return err == nil && n == len(files)
}

// tidy makes the links that users see and removes what is not of the new tree.
func tidy(root *os.Root, current string, files []*agentv1.File) error {
	want := map[string]bool{dataLink: true, current: true}
	var errs []error
	for _, f := range files {
		first, _, _ := strings.Cut(f.GetPath(), "/")
		if want[first] {
			continue
		}
		want[first] = true
		target := filepath.Join(dataLink, first)
		if have, err := root.Readlink(first); err == nil && have == target {
			continue
		}
		errs = append(errs, root.RemoveAll(first), root.Symlink(target, first))
	}
	d, err := root.Open(".")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	names, err := d.Readdirnames(-1)
	errs = append(errs, err, d.Close())
	for _, n := range names {
		if !want[n] {
			errs = append(errs, root.RemoveAll(n))
		}
	}
	return errors.Join(errs...)
}
