// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// maxArchivePath bounds the path of an entry: Linux's own limit.
const maxArchivePath = 4096

// maxArchivePadding is what may follow the last entry: tar pads to its block of 10 KiB.
const maxArchivePadding = 1 << 20

// errArchive: the archive is not one that may be unpacked.
var errArchive = errors.New("archive")

// archiveState is what became of the one archive of a volume.
type archiveState int

const (
	archiveNone archiveState = iota
	archiveBusy
	archiveDone
)

// PutArchive implements agentv1connect.VolumeServiceHandler. What was unpacked of an archive
// that ends early is removed, so that the call may be repeated.
func (vs *volumes) PutArchive(_ context.Context, stream *connect.ClientStream[agentv1.PutArchiveRequest]) (*connect.Response[agentv1.PutArchiveResponse], error) {
	if !stream.Receive() {
		return nil, errors.Join(invalid("the first message is missing, want start"), stream.Err())
	}
	start := stream.Msg().GetStart()
	if start == nil {
		return nil, invalid("the first message is not start")
	}
	v, err := vs.beginArchive(start.GetVolume())
	if err != nil {
		return nil, err
	}
	bytes, files, err := unpackInto(v.dir, &archiveReader{stream: stream})
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if err != nil {
		v.archive = archiveNone
		return nil, archiveError(start.GetVolume(), err)
	}
	v.archive = archiveDone
	return connect.NewResponse(&agentv1.PutArchiveResponse{Bytes: bytes, Files: files}), nil
}

func archiveError(volume string, err error) error {
	code := connect.CodeInternal
	switch {
	case errors.Is(err, errArchive):
		code = connect.CodeInvalidArgument
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = connect.CodeResourceExhausted
	}
	return connect.NewError(code, fmt.Errorf("unpack into volume %q: %w", volume, err))
}

// beginArchive finds the volume and keeps others from filling or removing it.
func (vs *volumes) beginArchive(name string) (*volume, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	v := vs.table[name]
	switch {
	case v == nil:
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("volume %q does not exist", name))
	case v.archive == archiveBusy:
		return nil, connect.NewError(connect.CodeAborted, fmt.Errorf("volume %q is being filled", name))
	case v.archive == archiveDone:
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("volume %q has been filled", name))
	}
	v.archive = archiveBusy
	return v, nil
}

// archiveReader reads the data of the messages.
type archiveReader struct {
	stream *connect.ClientStream[agentv1.PutArchiveRequest]
	rest   []byte
}

// Read implements io.Reader.
func (r *archiveReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if !r.stream.Receive() {
			if err := r.stream.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		if r.stream.Msg().GetStart() != nil {
			return 0, fmt.Errorf("%w: a second start", errArchive)
		}
		if r.rest = r.stream.Msg().GetData(); len(r.rest) > guest.MaxArchiveChunk {
			return 0, fmt.Errorf("%w: a message has %d bytes, at most %d are allowed", errArchive, len(r.rest), guest.MaxArchiveChunk)
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// unpackInto unpacks into a directory, or leaves it empty.
func unpackInto(dir string, r io.Reader) (bytes, files int64, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	u := &unpacker{root: root}
	if err := u.unpack(r); err != nil {
		return 0, 0, errors.Join(err, empty(root))
	}
	return u.bytes, u.files, nil
}

// empty removes what a directory holds.
func empty(root *os.Root) error {
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	errs := []error{err, d.Close()}
	for _, n := range names {
		errs = append(errs, root.RemoveAll(n))
	}
	return errors.Join(errs...)
}

// unpacker writes the entries of one archive. All names are resolved below root: no
// entry leaves it, whatever links the archive itself brings.
type unpacker struct {
	root         *os.Root
	bytes, files int64
	// dirs get their modes and times at the end: what is written in them changes both.
	dirs []*tar.Header
}

func (u *unpacker) unpack(r io.Reader) error {
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("%w: %w", errArchive, err)
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, t); err != nil {
			return fmt.Errorf("entry %d, %.256q: %w", u.files, h.Name, err)
		}
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(r, maxArchivePadding+1)); err != nil {
		return err
	} else if n > maxArchivePadding {
		return fmt.Errorf("%w: more than %d bytes follow its end", errArchive, maxArchivePadding)
	}
	for i := len(u.dirs) - 1; i >= 0; i-- {
		h := u.dirs[i]
		if err := u.finish(h.Name, h); err != nil {
			return fmt.Errorf("directory %.256q: %w", h.Name, err)
		}
	}
	return nil
}

func (u *unpacker) entry(h *tar.Header, data io.Reader) error {
	if u.files++; u.files > guest.MaxArchiveEntries {
		return fmt.Errorf("%w: more than %d entries", errArchive, guest.MaxArchiveEntries)
	}
	name, err := entryName(h.Name)
	if err != nil {
		return err
	}
	h.Name = name
	const most = 1<<31 - 1
	if h.Uid < 0 || h.Uid > most || h.Gid < 0 || h.Gid > most {
		return fmt.Errorf("%w: owner %d:%d is out of range", errArchive, h.Uid, h.Gid)
	}
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o755); err != nil {
			return refused(err)
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o755); err != nil {
			if st, serr := u.root.Lstat(name); serr != nil || !st.IsDir() {
				return refused(err)
			}
		}
		u.dirs = append(u.dirs, h)
		return nil
	case tar.TypeReg:
		if h.Size < 0 || h.Size > guest.MaxArchiveBytes-u.bytes {
			return fmt.Errorf("%w: its files hold more than %d bytes", errArchive, int64(guest.MaxArchiveBytes))
		}
		u.bytes += h.Size
		if err := u.file(name, h.Size, data); err != nil {
			return err
		}
		return u.finish(name, h)
	case tar.TypeSymlink:
		if len(h.Linkname) == 0 || len(h.Linkname) > maxArchivePath || strings.ContainsRune(h.Linkname, 0) {
			return fmt.Errorf("%w: a link to %.64q", errArchive, h.Linkname)
		}
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return refused(err)
		}
		return u.root.Lchown(name, h.Uid, h.Gid)
	default:
		return fmt.Errorf("%w: type %q is neither a file, a directory nor a symbolic link", errArchive, h.Typeflag)
	}
}

// entryName is the path of an entry, clean and below the volume. "." is the volume itself.
func entryName(s string) (string, error) {
	if len(s) > maxArchivePath || strings.ContainsRune(s, 0) || !filepath.IsLocal(s) {
		return "", fmt.Errorf("%w: its path does not stay in the volume", errArchive)
	}
	return path.Clean(s), nil
}

func (u *unpacker) file(name string, size int64, data io.Reader) error {
	f, err := u.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return refused(err)
	}
	_, err = io.CopyN(f, data, size)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: it ends early", errArchive)
	}
	return errors.Join(err, f.Close())
}

// finish gives a file or a directory its owner, mode and time.
func (u *unpacker) finish(name string, h *tar.Header) error {
	if err := u.root.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := u.root.Chmod(name, fs.FileMode(h.Mode)&fs.ModePerm); err != nil { //nolint:gosec // masked
		return err
	}
	// A time that the file system cannot have is not worth a failure.
	if t := h.ModTime; t.After(time.Unix(0, 0)) && t.Before(time.Unix(1<<32, 0)) {
		return u.root.Chtimes(name, t, t)
	}
	return nil
}

// refused is the error of a path that leads out of the volume, through a link, or that is
// there already.
func refused(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w: %w", errArchive, err)
}
