// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// digestFile streams a file's digest: its SHA-256, or for a sparse one
// kit.SparseDigest, which reads only what is not a hole. A guest of 8 GiB has touched
// some 50 MB of its memory when it is saved. It ends early with ctx.Err.
func digestFile(ctx context.Context, path string, sparse bool) (size int64, sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.Close() })
	defer func() {
		if !stop() {
			err = ctx.Err()
			return
		}
		err = errors.Join(err, f.Close())
	}()
	return digest(f, f, sparse)
}

// digestPaced is digestFile for a reader that is in nobody's way.
func digestPaced(path string, sparse bool, p *pace) (size int64, sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	leaveAlone(f)
	return digest(f, &pacedFile{File: f, pace: p}, sparse)
}

// digest reads f through r.
func digest(f *os.File, r interface {
	io.Reader
	kit.SparseFile
}, sparse bool) (size int64, sum string, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, "", err
	}
	if sparse {
		sum, err = kit.SparseDigest(r, info.Size())
		return info.Size(), sum, err
	}
	h := sha256.New()
	// A buffer large enough that the calls do not count; without WriterTo and
	// ReaderFrom in the way.
	size, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, make([]byte, 1<<20))
	return size, hex.EncodeToString(h.Sum(nil)), err
}

// checkSizes is the cheap check before every use: every member is there, a regular
// file of the right size. It reads nothing.
func checkSizes(dir string, m Manifest) error {
	for _, f := range m.Members {
		if err := checkSize(dir, m.Key, f); err != nil {
			return err
		}
	}
	return nil
}

func checkSize(dir, key string, f Member) error {
	info, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(f.Name)))
	switch {
	case isNotExist(err):
		return &IntegrityError{Key: key, Member: f.Name, Problem: "is missing"}
	case err != nil:
		return fmt.Errorf("look at %q: %w", f.Name, err)
	case !info.Mode().IsRegular():
		return &IntegrityError{Key: key, Member: f.Name, Problem: "is not a regular file"}
	case info.Size() != f.Size:
		return &IntegrityError{Key: key, Member: f.Name, Problem: fmt.Sprintf("has %d bytes, want %d", info.Size(), f.Size)}
	}
	return nil
}

// verifySet checks every member's size, then every member's content.
func verifySet(ctx context.Context, dir string, m Manifest) error {
	if err := checkSizes(dir, m); err != nil {
		return err
	}
	for _, f := range m.Members {
		size, sum, err := digestFile(ctx, memberPath(dir, f), f.Sparse)
		if err != nil {
			return fmt.Errorf("read %q: %w", f.Name, err)
		}
		if err := f.check(m.Key, size, sum); err != nil {
			return err
		}
	}
	return nil
}

func memberPath(dir string, f Member) string { return filepath.Join(dir, filepath.FromSlash(f.Name)) }

// check compares a member with what was read. Pure.
func (f Member) check(key string, size int64, sum string) error {
	if size != f.Size || sum != f.SHA256 {
		return &IntegrityError{Key: key, Member: f.Name, Problem: "does not have the content that was saved"}
	}
	return nil
}

// readManifest reads the manifest of a set. A missing or damaged one is
// vm.ErrSnapshotInvalid.
func readManifest(dir string) (m Manifest, err error) {
	f, err := os.Open(filepath.Join(dir, manifestName))
	if isNotExist(err) {
		return Manifest{}, fmt.Errorf("%w: no manifest", vm.ErrSnapshotInvalid)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	m, err = DecodeManifest(f)
	if errors.Is(err, ErrManifest) {
		return Manifest{}, fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
	}
	return m, err
}

// readBounded reads a small file.
func readBounded(path string, most int64) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	data, err = io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("more than %d bytes", most)
	}
	return data, nil
}
