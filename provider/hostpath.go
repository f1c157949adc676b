// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

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
	"slices"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// A machine shares no files with its host. Where the node allows it, a hostPath volume is
// a copy: what is there when the pod is set up is sent into the machine, once, and what
// the pod writes stays there.

// hostPathContent is the name, in the machine's volume, of what was copied, which may be a
// file.
const hostPathContent = "content"

// hostPaths are the directories of the host that may be copied from.
type hostPaths []string

func newHostPaths(prefixes []string) hostPaths {
	out := make(hostPaths, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, filepath.Clean(p))
	}
	return out
}

// within finds the narrowest allowed directory that a path lies in, and the rest of the path
// from there.
func (h hostPaths) within(name string) (prefix, rest string, ok bool) {
	if !filepath.IsAbs(name) {
		return "", "", false
	}
	for _, p := range h {
		rel, err := filepath.Rel(p, filepath.Clean(name))
		if err == nil && filepath.IsLocal(rel) && len(p) >= len(prefix) {
			prefix, rest, ok = p, rel, true
		}
	}
	return prefix, rest, ok
}

// faults are one sentence for each hostPath volume of the pod that the node does not give.
// It is pure.
func (h hostPaths) faults(pod *corev1.Pod) []string {
	var out []string
	for i := range pod.Spec.Volumes {
		src := pod.Spec.Volumes[i].HostPath
		if src == nil {
			continue
		}
		if _, _, ok := h.within(src.Path); !ok {
			out = append(out, fmt.Sprintf("spec.volumes[%d].hostPath: the node's own files are not shared with machines "+
				"(use an emptyDir, configMap or image volume, or start the node with --allow-host-path for a copy of %.256q)", i, src.Path))
			continue
		}
		switch t := hostPathType(src); t {
		case corev1.HostPathUnset, corev1.HostPathDirectory, corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate:
		default:
			out = append(out, fmt.Sprintf("spec.volumes[%d].hostPath.type: %.64s cannot be copied into a machine, only files and directories can", i, t))
		}
	}
	return out
}

func hostPathType(src *corev1.HostPathVolumeSource) corev1.HostPathType {
	if src.Type == nil {
		return corev1.HostPathUnset
	}
	return *src.Type
}

// translate is translate for a pod of this node.
func (e *environment) translate(pod *corev1.Pod) (*plan, *refusal, *templateWait) {
	if faults := e.hostPaths.faults(pod); len(faults) > 0 {
		faults = append(unsupported(pod), faults...)
		return nil, &refusal{Reason: ReasonUnsupportedField, Message: strings.Join(faults, "; ")}, nil
	}
	return translate(pod, e.supply, e.templates, e.allocatable)
}

// copyHostPath fills a volume with what is at its path on the host. A volume that was filled
// before is left as it is.
func (e *environment) copyHostPath(ctx context.Context, g *Guest, pod *corev1.Pod, v *corev1.Volume) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends a stream that was not sent to its end
	stream := g.Volumes.PutArchive(ctx)
	w := &archiveWriter{stream: stream}
	err := stream.Send(&agentv1.PutArchiveRequest{Event: &agentv1.PutArchiveRequest_Start{Start: &agentv1.PutArchiveStart{Volume: v.Name}}})
	a := &archiver{tar: tar.NewWriter(w)}
	if err == nil {
		if err = a.hostPath(e.hostPaths, v.HostPath); err == nil {
			err = errors.Join(a.tar.Close(), w.flush())
		}
	}
	if err != nil && !errors.Is(err, io.EOF) { // EOF: the machine said why
		return fmt.Errorf("volume %q: copy host path %q: %w", v.Name, v.HostPath.Path, err)
	}
	res, err := stream.CloseAndReceive()
	if err != nil && connect.CodeOf(err) == connect.CodeAlreadyExists {
		return nil // it was filled before, and set-up is repeated
	}
	if err != nil {
		return fmt.Errorf("volume %q: copy host path %q: %w", v.Name, v.HostPath.Path, err)
	}
	text := fmt.Sprintf("Volume %q is a copy of host path %q: %d files, %d bytes. Neither side sees what the other writes from now on.",
		v.Name, v.HostPath.Path, a.entries, max(0, res.Msg.GetBytes()))
	if a.left > 0 {
		text += fmt.Sprintf(" %d sockets, pipes and devices were left out.", a.left)
	}
	e.events.pod(pod, false, eventHostPathCopied, text)
	return nil
}

// eventHostPathCopied says that a hostPath volume is a copy.
const eventHostPathCopied = "HostPathCopied"

// archiveWriter sends an archive in messages.
type archiveWriter struct {
	stream *connect.ClientStreamForClient[agentv1.PutArchiveRequest, agentv1.PutArchiveResponse]
	buffer []byte
}

// archiveMessage is how much one message carries: enough to be quick, little enough to let
// other calls on the connection through.
const archiveMessage = min(256<<10, guest.MaxArchiveChunk)

func (w *archiveWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := min(archiveMessage-len(w.buffer), len(p))
		w.buffer = append(w.buffer, p[:room]...)
		p = p[room:]
		if len(w.buffer) == archiveMessage {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *archiveWriter) flush() error {
	if len(w.buffer) == 0 {
		return nil
	}
	err := w.stream.Send(&agentv1.PutArchiveRequest{Event: &agentv1.PutArchiveRequest_Data{Data: w.buffer}})
	w.buffer = w.buffer[:0] // Send has encoded it
	return err
}

// archiver writes what is at a path of the host into an archive.
type archiver struct {
	tar     *tar.Writer
	entries int
	bytes   int64
	left    int // what cannot be copied
}

var errNotCopied = errors.New("is neither a file nor a directory")

// hostPath writes what is there. No link leads out of the allowed directory: all is
// opened below it.
func (a *archiver) hostPath(allowed hostPaths, src *corev1.HostPathVolumeSource) (err error) {
	prefix, rest, ok := allowed.within(src.Path)
	if !ok {
		return errors.New("the node does not allow it any more")
	}
	root, err := os.OpenRoot(prefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	want := hostPathType(src)
	st, err := root.Stat(rest)
	switch {
	case errors.Is(err, fs.ErrNotExist) && want == corev1.HostPathDirectoryOrCreate:
		// The kubelet's modes. Nothing is made on the host.
		return a.header(&tar.Header{Typeflag: tar.TypeDir, Name: hostPathContent, Mode: 0o755})
	case errors.Is(err, fs.ErrNotExist) && want == corev1.HostPathFileOrCreate:
		return a.header(&tar.Header{Typeflag: tar.TypeReg, Name: hostPathContent, Mode: 0o644})
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("hostPath type check failed: it does not exist")
	case err != nil:
		return err
	case !st.IsDir() && (want == corev1.HostPathDirectory || want == corev1.HostPathDirectoryOrCreate):
		return errors.New("hostPath type check failed: it is not a directory")
	case !st.Mode().IsRegular() && (want == corev1.HostPathFile || want == corev1.HostPathFileOrCreate):
		return errors.New("hostPath type check failed: it is not a file")
	case st.Mode().IsRegular():
		return a.file(root, rest, hostPathContent)
	case st.IsDir():
		return a.tree(root, rest)
	default:
		return errNotCopied
	}
}

func (a *archiver) tree(root *os.Root, dir string) (err error) {
	sub, err := root.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	return a.dir(sub, ".")
}

// dir writes a directory and what is in it. Not by fs.WalkDir, which does not enter a
// directory whose name is no UTF-8.
func (a *archiver) dir(root *os.Root, p string) error {
	f, err := root.Open(p)
	if err != nil {
		return err
	}
	st, serr := f.Stat()
	entries, err := f.ReadDir(guest.MaxArchiveEntries)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if err := errors.Join(serr, err, f.Close()); err != nil {
		return err
	}
	if err := a.info(st, path.Join(hostPathContent, p), ""); err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := a.entry(root, path.Join(p, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	return nil
}

func (a *archiver) entry(root *os.Root, p string, kind fs.FileMode) error {
	name := path.Join(hostPathContent, p)
	switch {
	case kind.IsDir():
		return a.dir(root, p)
	case kind.IsRegular():
		return a.file(root, p, name)
	case kind == fs.ModeSymlink:
		target, err := root.Readlink(p)
		if err != nil {
			return err
		}
		st, err := root.Lstat(p)
		if err != nil {
			return err
		}
		return a.info(st, name, target)
	default:
		a.left++
		return nil
	}
}

// file writes one file. What is opened is looked at, not what was there a moment ago: it must
// not be a pipe that never answers.
func (a *archiver) file(root *os.Root, p, name string) (err error) {
	f, err := root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errNotCopied
	}
	if err := a.info(st, name, ""); err != nil {
		return err
	}
	if n, err := io.CopyN(a.tar, f, st.Size()); errors.Is(err, io.EOF) && n < st.Size() {
		return fmt.Errorf("%q became shorter while it was copied", p)
	} else if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// info writes the header of a file, with its numeric owner.
func (a *archiver) info(st fs.FileInfo, name, target string) error {
	h, err := tar.FileInfoHeader(st, target)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	// A link's mode means nothing, and a second name is a file of its own in the copy.
	if h.Typeflag == tar.TypeLink {
		h.Typeflag, h.Linkname = tar.TypeReg, ""
	}
	if h.Uid > 1<<31-1 || h.Gid > 1<<31-1 { // macOS has owners beyond, such as nobody's -2
		h.Uid, h.Gid = 65534, 65534
	}
	return a.header(h)
}

func (a *archiver) header(h *tar.Header) error {
	a.entries++
	a.bytes += h.Size
	switch {
	case a.entries > guest.MaxArchiveEntries:
		return fmt.Errorf("it has more than %d files", guest.MaxArchiveEntries)
	case a.bytes > guest.MaxArchiveBytes:
		return fmt.Errorf("it holds more than %d bytes", int64(guest.MaxArchiveBytes))
	}
	return a.tar.WriteHeader(h)
}
