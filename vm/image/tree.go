// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"encoding/binary"
	"path"
	"sort"
	"strings"
	"time"
)

// Limits bound what an image may make us do. A zero field takes its default.
type Limits struct {
	// Layers of an image. 256: overlayfs-based runtimes stop at 127 or 500.
	Layers int
	// Bytes of all files unpacked, and of all layers compressed. 32 GiB, and never
	// more than an eighth less than the slot.
	Bytes int64
	// Entries in all layers together, and directories that are only named in the paths of
	// others. 2^20: large machine-learning images have 300,000.
	Entries int
	// NameBytes of all names, link targets and attributes together, which are held
	// in memory. 256 MiB.
	NameBytes int64
	// PathBytes of one name, as it is written and as links make it. 4096, Linux's PATH_MAX.
	PathBytes int
}

func (l Limits) withDefaults(slotBytes int64) Limits {
	if l.Layers <= 0 {
		l.Layers = 256
	}
	if l.Bytes <= 0 {
		l.Bytes = 32 << 30
	}
	// The rest of the slot is for inodes, directories and block padding.
	l.Bytes = min(l.Bytes, slotBytes-slotBytes/8)
	if l.Entries <= 0 {
		l.Entries = 1 << 20
	}
	if l.NameBytes <= 0 {
		l.NameBytes = 256 << 20
	}
	if l.PathBytes <= 0 {
		l.PathBytes = 4096
	}
	return l
}

// stream bounds what all layers together unpack to: headers and padding come on top of the
// files, and what is more than that is a bomb that hides behind the end of an archive. It is one
// bound for all of them, or an image would cost as many times that as it has layers.
func (l Limits) stream() int64 { return l.Bytes + l.NameBytes + 4096*int64(l.Entries) }

const (
	maxComponentBytes = 255 // NAME_MAX
	maxSymlinkHops    = 40  // the kernel's own limit
	// maxLinkSteps bounds the work of following symbolic links in a whole image.
	maxLinkSteps   = 16 << 20
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	lostAndFound   = "lost+found" // the file system's own
	// maxFileBytes: the ext4 writer lays out larger files wrongly (beyond 340
	// extents of 128 MiB).
	maxFileBytes = 40 << 30
)

// inode is one file of the tree; several names may lead to it.
type inode struct {
	header   tar.Header // Name is not used
	children map[string]dirent
	layer    int // where its content is ...
	entry    int // ... the how manyth entry of that layer
	// cleaned is 1 + the layer that last hid what lower layers put into this
	// directory. Once is enough per layer, however many whiteouts say so.
	cleaned int
}

func (n *inode) isDir() bool { return n.children != nil }

// dirent is a name in a directory. Its layer is the one that last wrote the name,
// which decides what a whiteout of a layer may remove.
type dirent struct {
	*inode
	layer int
}

// tree is the root file system of an image, layers applied from the lowest up, as
// the OCI image specification says. It holds names and attributes, no content.
type tree struct {
	root   dirent
	limits Limits

	entries   int
	bytes     int64
	nameBytes int64
	linkSteps int
}

func newTree(limits Limits) *tree {
	return &tree{root: dirent{inode: newDir(), layer: 0}, limits: limits}
}

// newDir is a directory that no layer describes: root's, 0755, as runtimes make it.
func newDir() *inode {
	return &inode{
		header:   tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)},
		children: map[string]dirent{},
		layer:    -1,
	}
}

// add applies one entry of a layer. Errors are ErrCorrupt.
func (t *tree) add(h *tar.Header, layer, entry int) error {
	if err := t.count(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := t.split(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return corrupt("the root is not a directory")
		}
		t.root.header, t.root.layer = kept(h), layer
		return nil
	}
	base := parts[len(parts)-1]
	parent, err := t.parent(parts[:len(parts)-1], len(base), layer)
	if err != nil {
		return err
	}
	if base == opaqueMarker {
		removeLower(parent, layer)
		return nil
	}
	if hidden, ok := strings.CutPrefix(base, whiteoutPrefix); ok {
		if hidden == "" || hidden == "." || hidden == ".." {
			return corrupt("whiteout %.256q hides nothing", h.Name)
		}
		if d, ok := parent.children[hidden]; ok && !survives(&d, layer) {
			delete(parent.children, hidden)
		}
		return nil
	}
	if len(parts) == 1 && base == lostAndFound && h.Typeflag != tar.TypeDir {
		return nil // the file system has a directory of this name in any case
	}

	old, exists := parent.children[base]
	switch h.Typeflag {
	case tar.TypeDir:
		if exists && old.isDir() {
			// A layer may describe a directory anew; what is in it stays.
			old.header, old.layer = kept(h), layer
			parent.children[base] = old
			return nil
		}
		d := newDir()
		d.header = kept(h)
		parent.children[base] = dirent{d, layer}
	case tar.TypeLink:
		target, err := t.lookup(h.Linkname, layer)
		if err != nil {
			return err
		}
		if target == nil || target.isDir() {
			return corrupt("hard link %.256q leads to %.256q, which is not a file of the image", h.Name, h.Linkname)
		}
		parent.children[base] = dirent{target, layer}
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		if h.Size < 0 || h.Size > maxFileBytes {
			return corrupt("file %.256q has %d bytes, want at most %d", h.Name, h.Size, int64(maxFileBytes))
		}
		n := &inode{header: kept(h), layer: layer, entry: entry}
		n.header.Typeflag, n.header.Size = tar.TypeReg, h.Size
		parent.children[base] = dirent{n, layer}
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) > t.limits.PathBytes-1 || strings.IndexByte(h.Linkname, 0) >= 0 {
			return corrupt("symbolic link %.256q has a target of %d bytes, want 1 to %d without NUL", h.Name, len(h.Linkname), t.limits.PathBytes-1)
		}
		n := &inode{header: kept(h), layer: layer, entry: entry}
		parent.children[base] = dirent{n, layer}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
			return nil // overlayfs' whiteout, see the package comment
		}
		// 12 and 20 bits are what Linux has for a device number.
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return corrupt("device %.256q has the number %d:%d", h.Name, h.Devmajor, h.Devminor)
		}
		parent.children[base] = dirent{&inode{header: kept(h), layer: layer, entry: entry}, layer}
	default:
		return corrupt("entry %.256q has the type %q", h.Name, h.Typeflag)
	}
	return nil
}

// count holds an entry against the limits.
func (t *tree) count(h *tar.Header) error {
	t.entries++
	t.bytes += max(h.Size, 0)
	t.nameBytes += int64(len(h.Name) + len(h.Linkname))
	for k, v := range h.PAXRecords {
		t.nameBytes += int64(len(k) + len(v))
	}
	switch {
	case h.Size < 0:
		return corrupt("entry %.256q has %d bytes", h.Name, h.Size)
	case t.entries > t.limits.Entries:
		return corrupt("more than %d entries", t.limits.Entries)
	case t.bytes < 0 || t.bytes > t.limits.Bytes:
		return corrupt("more than %d bytes unpacked", t.limits.Bytes)
	case t.nameBytes > t.limits.NameBytes:
		return corrupt("more than %d bytes of names and attributes", t.limits.NameBytes)
	case h.Uid < 0 || h.Gid < 0 || int64(h.Uid) > 1<<32-2 || int64(h.Gid) > 1<<32-2:
		return corrupt("entry %.256q belongs to %d:%d", h.Name, h.Uid, h.Gid)
	}
	return nil
}

// split cuts a name into its components, confined to the root. "/a", "./a" and
// "b/../a" are "a"; a name that climbs out is an attack.
func (t *tree) split(name string) ([]string, error) {
	if len(name) > t.limits.PathBytes {
		return nil, corrupt("name %.64q... has %d bytes, want at most %d", name, len(name), t.limits.PathBytes)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, corrupt("name %.256q contains a NUL byte", name)
	}
	clean := path.Clean(strings.TrimLeft(name, "/"))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return nil, corrupt("name %.256q leads out of the image", name)
	}
	if clean == "." || clean == "" {
		return nil, nil
	}
	parts := strings.Split(clean, "/")
	for _, p := range parts {
		if len(p) > maxComponentBytes {
			return nil, corrupt("name %.64q... has a component of %d bytes, want at most %d", name, len(p), maxComponentBytes)
		}
	}
	return parts, nil
}

// parent finds or makes the directory an entry of a layer goes into. A symbolic
// link of the same layer is followed, as unpacking the layer would; one of a lower
// layer is hidden by the directory, as overlayfs does. The entry's own name has base bytes.
func (t *tree) parent(parts []string, base, layer int) (*inode, error) {
	dir := t.root.inode
	done := make([]string, 0, len(parts)) // where dir is
	todo := append([]string(nil), parts...)
	hops := 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		d, ok := dir.children[name]
		switch {
		case ok && d.isDir():
		case ok && d.layer == layer && d.header.Typeflag == tar.TypeSymlink:
			if hops++; hops > maxSymlinkHops {
				return nil, corrupt("name %.256q leads through more than %d symbolic links", strings.Join(parts, "/"), maxSymlinkHops)
			}
			todo = append(resolveLink(done, d.header.Linkname), todo...)
			if t.linkSteps += len(todo); t.linkSteps > maxLinkSteps {
				return nil, corrupt("names lead through symbolic links more than %d components long", maxLinkSteps)
			}
			dir, done = t.root.inode, done[:0]
			continue
		case ok && d.layer == layer:
			return nil, corrupt("name %.256q leads through a file", strings.Join(parts, "/"))
		default:
			// A path of 4096 bytes may name 2048 directories: they cost as much as entries.
			if t.entries++; t.entries > t.limits.Entries {
				return nil, corrupt("more than %d entries and directories", t.limits.Entries)
			}
			d = dirent{newDir(), layer}
			dir.children[name] = d
		}
		dir, done = d.inode, append(done, name)
	}
	if hops == 0 {
		return dir, nil
	}
	// A short name behind a long link is a long name, which flatten holds in memory.
	n := base
	for _, p := range done {
		n += len(p) + 1
	}
	if n > t.limits.PathBytes {
		return nil, corrupt("name %.256q leads through symbolic links to one of %d bytes, want at most %d", strings.Join(parts, "/"), n, t.limits.PathBytes)
	}
	if t.nameBytes += int64(n); t.nameBytes > t.limits.NameBytes {
		return nil, corrupt("more than %d bytes of names and attributes", t.limits.NameBytes)
	}
	return dir, nil
}

// resolveLink gives the path from the root that a symbolic link in dir leads to.
// ".." at the root is the root.
func resolveLink(dir []string, target string) []string {
	p := target
	if !path.IsAbs(p) {
		p = strings.Join(dir, "/") + "/" + p
	}
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		return nil
	}
	return strings.Split(p, "/")
}

// lookup finds what a hard link leads to; nil if there is nothing.
func (t *tree) lookup(name string, layer int) (*inode, error) {
	parts, err := t.split(name)
	if err != nil || len(parts) == 0 {
		return nil, err
	}
	dir := t.root.inode
	for _, p := range parts[:len(parts)-1] {
		d, ok := dir.children[p]
		if !ok {
			return nil, nil
		}
		if !d.isDir() && d.layer == layer && d.header.Typeflag == tar.TypeSymlink {
			// Rare enough for the long way: make the path again from the start.
			if dir, err = t.parent(parts[:len(parts)-1], len(parts[len(parts)-1]), layer); err != nil {
				return nil, err
			}
			break
		}
		if !d.isDir() {
			return nil, nil
		}
		dir = d.inode
	}
	return dir.children[parts[len(parts)-1]].inode, nil
}

// survives takes out of d what lower layers put there, and reports whether
// anything of this layer is left of it.
func survives(d *dirent, layer int) bool {
	if !d.isDir() {
		return d.layer == layer
	}
	removeLower(d.inode, layer)
	return d.layer == layer || len(d.children) > 0
}

func removeLower(dir *inode, layer int) {
	if dir.cleaned == layer+1 {
		return
	}
	dir.cleaned = layer + 1
	for name, d := range dir.children {
		if !survives(&d, layer) {
			delete(dir.children, name)
		}
	}
}

// kept is what of a header goes into the disk.
func kept(h *tar.Header) tar.Header {
	k := tar.Header{
		Typeflag: h.Typeflag,
		Linkname: h.Linkname,
		Size:     h.Size,
		Mode:     h.Mode & 0o7777,
		Uid:      h.Uid,
		Gid:      h.Gid,
		ModTime:  h.ModTime,
		Devmajor: h.Devmajor,
		Devminor: h.Devminor,
	}
	if k.Typeflag != tar.TypeReg {
		k.Size = 0
	}
	for name, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(name, xattrRecord)
		if !ok {
			continue
		}
		v, ok := keptXattr(attr, []byte(value))
		if !ok {
			continue
		}
		if k.PAXRecords == nil {
			k.PAXRecords = map[string]string{}
		}
		k.PAXRecords[name] = string(v)
	}
	return k
}

// xattrRecord is how tar archives carry extended attributes.
const xattrRecord = "SCHILY.xattr."

// keptXattr decides on an extended attribute and gives its form on ext4.
func keptXattr(name string, value []byte) ([]byte, bool) {
	switch {
	case name == "security.capability":
		return value, true
	case strings.HasPrefix(name, "user.overlay."):
		return nil, false
	case strings.HasPrefix(name, "user."):
		return value, len(name) > len("user.") && len(name) <= maxComponentBytes
	case name == "system.posix_acl_access" || name == "system.posix_acl_default":
		return diskACL(value)
	}
	return nil, false
}

// diskACL turns a POSIX ACL from the form of getxattr (version 2, entries of 8
// bytes; linux/posix_acl_xattr.h) into that of ext4 (version 1, an id only where
// there is one; fs/ext4/acl.h). A file with an ACL that the kernel cannot decode could not be opened.
func diskACL(v []byte) ([]byte, bool) {
	const (
		userTag  = 0x02
		groupTag = 0x08
	)
	if len(v) < 4 || (len(v)-4)%8 != 0 || binary.LittleEndian.Uint32(v) != 2 {
		return nil, false
	}
	out := binary.LittleEndian.AppendUint32(nil, 1)
	for e := v[4:]; len(e) > 0; e = e[8:] {
		tag := binary.LittleEndian.Uint16(e)
		switch tag {
		case userTag, groupTag:
			out = append(out, e[:8]...)
		case 0x01, 0x04, 0x10, 0x20: // owner, group, mask, others
			out = append(out, e[:4]...)
		default:
			return nil, false
		}
	}
	return out, true
}

// sortedNames are a directory's names in a fixed order, so that the same image
// gives the same disk.
func (n *inode) sortedNames() []string {
	names := make([]string, 0, len(n.children))
	for name := range n.children {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
