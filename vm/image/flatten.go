// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// opener opens the compressed bytes of a layer, lowest layer first.
type opener func() (io.ReadCloser, error)

// maxZstdWindow: the specification asks decoders for 8 MiB, `zstd --long` writes
// up to 128 MiB.
const maxZstdWindow = 128 << 20

// index reads all layers and gives the tree they make.
func index(ctx context.Context, layers []opener, limits Limits) (*tree, error) {
	t := newTree(limits)
	left := limits.stream()
	for i, open := range layers {
		err := readLayer(ctx, open, &left, func(entry int, h *tar.Header, _ io.Reader) error {
			return t.add(h, i, entry)
		})
		if err != nil {
			return nil, fmt.Errorf("read layer %d: %w", i, err)
		}
	}
	return t, nil
}

// flatten writes the tree to w as one tar archive: directories first, then the
// content of files in the order in which the layers hold it, then links and
// special files. Every name comes once, after its directory and, for a hard link,
// after the file it leads to. Layers are read a second time for that, and must not have
// changed.
func flatten(ctx context.Context, t *tree, layers []opener, w io.Writer) error {
	// Headers are small writes, and w may be a pipe where each costs a switch.
	bw := bufio.NewWriterSize(w, 256<<10)
	tw := tar.NewWriter(bw)
	buf := make([]byte, 256<<10)
	f := &flattener{tw: tw, names: map[*inode]string{}, files: make([]map[int]*inode, len(layers))}
	if err := f.header(t.root.inode, "./"); err != nil {
		return err
	}
	if err := f.dirs(t.root.inode, ""); err != nil {
		return err
	}
	budget := t.limits.stream()
	for i, open := range layers {
		if len(f.files[i]) == 0 {
			continue
		}
		left := len(f.files[i])
		err := readLayer(ctx, open, &budget, func(entry int, h *tar.Header, r io.Reader) error {
			n, ok := f.files[i][entry]
			if !ok {
				return nil
			}
			if h.Size != n.header.Size {
				return fmt.Errorf("layer changed while it was read")
			}
			left--
			if err := f.header(n, f.names[n]); err != nil {
				return err
			}
			if _, err := io.CopyBuffer(tw, r, buf); err != nil {
				return err
			}
			if left == 0 {
				return errEnough
			}
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return fmt.Errorf("unpack layer %d: %w", i, err)
		}
	}
	for _, l := range f.links {
		if err := ctx.Err(); err != nil {
			return err
		}
		h := tar.Header{Typeflag: tar.TypeLink, Name: l.name, Linkname: f.names[l.inode], Format: tar.FormatPAX}
		if err := tw.WriteHeader(&h); err != nil {
			return fmt.Errorf("link %.256q: %w", l.name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

var errEnough = errors.New("nothing more to read here")

type flattener struct {
	tw    *tar.Writer
	names map[*inode]string // the name a file is written under
	files []map[int]*inode  // by layer and entry: whose content that is
	links []hardLink        // the other names
}

type hardLink struct {
	name string
	*inode
}

// dirs writes the directories and everything without content below dir, and
// plans the rest.
func (f *flattener) dirs(dir *inode, prefix string) error {
	for _, base := range dir.sortedNames() {
		n := dir.children[base].inode
		name := prefix + base
		if n.isDir() {
			if err := f.header(n, name+"/"); err != nil {
				return err
			}
			if err := f.dirs(n, name+"/"); err != nil {
				return err
			}
			continue
		}
		if _, again := f.names[n]; again {
			f.links = append(f.links, hardLink{name, n})
			continue
		}
		f.names[n] = name
		if n.header.Typeflag == tar.TypeReg && n.header.Size > 0 {
			if f.files[n.layer] == nil {
				f.files[n.layer] = map[int]*inode{}
			}
			f.files[n.layer][n.entry] = n
			continue
		}
		if err := f.header(n, name); err != nil {
			return err
		}
	}
	return nil
}

func (f *flattener) header(n *inode, name string) error {
	h := n.header
	h.Name = name
	h.Format = tar.FormatPAX // long names, large ids, sub-second times, attributes
	if err := f.tw.WriteHeader(&h); err != nil {
		return corrupt("entry %.256q: %w", name, err)
	}
	return nil
}

// readLayer calls do for each entry of a layer, in order, and reads the layer to
// its very end so that the checksums of its compression are checked. left is how many
// bytes this layer and those after it may unpack to.
func readLayer(ctx context.Context, open opener, left *int64, do func(entry int, h *tar.Header, r io.Reader) error) error {
	raw, err := open()
	if err != nil {
		return err
	}
	defer func() { _ = raw.Close() }()
	plain, err := decompress(&contextReader{ctx, raw})
	if err != nil {
		return err
	}
	defer plain.Close()
	bounded := &boundedReader{r: plain, left: left}
	tr := tar.NewReader(bounded)
	for entry := 0; ; entry++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(ctx, err)
		}
		if err := do(entry, h, tr); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, bounded); err != nil {
		return archiveError(ctx, err)
	}
	return nil
}

// archiveError: what cannot be read as an archive is corrupt, unless we stopped
// or our own disk failed.
func archiveError(ctx context.Context, err error) error {
	var local localFault
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case hasKind(err) || errors.As(err, &local):
		return err
	}
	return corrupt("decode archive: %w", err)
}

// decompress finds out by itself how a layer is compressed: registries and tools
// are careless with media types.
func decompress(r io.Reader) (*plainReader, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, corrupt("decompress: %w", err)
		}
		return &plainReader{z, func() { _ = z.Close() }}, nil
	case len(magic) == 4 && magic[0] == 0x28 && magic[1] == 0xb5 && magic[2] == 0x2f && magic[3] == 0xfd:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, corrupt("decompress: %w", err)
		}
		return &plainReader{z, z.Close}, nil
	}
	return &plainReader{br, func() {}}, nil
}

type plainReader struct {
	io.Reader
	close func()
}

func (p *plainReader) Close() { p.close() }

// contextReader ends when its context does, and marks a failing disk as ours.
type contextReader struct {
	ctx context.Context //nolint:containedctx // that of the reads, which take none
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = localFault{err}
	}
	return n, err
}

// boundedReader refuses to read on after its bound.
type boundedReader struct {
	r    io.Reader
	left *int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	*b.left -= int64(n)
	if *b.left < 0 {
		return 0, corrupt("layers unpack to more than allowed")
	}
	return n, err
}
