// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// maxStored bounds what an archive holds without the holes of its scratch disk. One that keeps no holes has 16 GiB
// of zeros, which whoever unpacks it must find room for.
const maxStored = 1 << 30

// file is one of an archive.
type file struct {
	mode   fs.FileMode
	size   int64
	digest string // empty for a file with holes, which is too large to read
}

// readArchive reads an archive whose files are all below root, and writes those that are wanted, by their names below
// root, elsewhere. limit is what it may hold, but for holes.
func readArchive(archive, root string, limit int64, want map[string]string) (files map[string]file, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, err
	}
	bounded := &io.LimitedReader{R: unzipped, N: limit}
	tooMuch := fmt.Errorf("it holds more than %d bytes: does it keep the holes of the scratch disk?", limit)
	reader := tar.NewReader(bounded)
	files = map[string]file{}
	for {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) && bounded.N > 0 {
			return files, nil
		}
		if bounded.N <= 0 {
			return nil, tooMuch
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean(h.Name)
		below, ok := strings.CutPrefix(name, root+"/")
		if name != root && !ok || !filepath.IsLocal(name) {
			return nil, fmt.Errorf("%q is not below %s", h.Name, root)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			continue
		case tar.TypeReg, tar.TypeGNUSparse:
		default:
			return nil, fmt.Errorf("%q is no regular file (type %q)", h.Name, h.Typeflag)
		}
		entry := file{mode: h.FileInfo().Mode().Perm(), size: h.Size}
		if path.Base(below) != kit.ScratchName {
			var to io.Writer = io.Discard
			if target, ok := want[below]; ok {
				out, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
				if err != nil {
					return nil, err
				}
				defer out.Close()
				to = out
			}
			sum := sha256.New()
			if _, err := io.Copy(io.MultiWriter(sum, to), reader); err != nil {
				if bounded.N <= 0 {
					err = tooMuch
				}
				return nil, fmt.Errorf("read %q: %w", h.Name, err)
			}
			entry.digest = hex.EncodeToString(sum.Sum(nil))
		}
		files[below] = entry
	}
}

// complete tells what an archive lacks.
func complete(files map[string]file, arch string, manifest kit.Manifest) error {
	var errs []error
	guest := "bin/guest/" + arch + "/"
	for _, name := range []string{
		"bin/vk-firkin", "LICENSE", "THIRD-PARTY-LICENCES.txt", "charts/vk-firkin/Chart.yaml",
		guest + kit.ManifestName, guest + kit.NoticesName,
	} {
		if f, ok := files[name]; !ok || f.size == 0 {
			errs = append(errs, fmt.Errorf("it has no %s", name))
		} else if f.mode&0o444 != 0o444 {
			errs = append(errs, fmt.Errorf("%s has mode %v: others cannot read it", name, f.mode))
		}
	}
	if f, ok := files["bin/vk-firkin"]; ok && f.mode != 0o755 {
		errs = append(errs, fmt.Errorf("bin/vk-firkin has mode %v", f.mode))
	}
	for _, want := range manifest.Files {
		got, ok := files[guest+want.Name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("it has no %s", guest+want.Name))
		case got.size != want.Size:
			errs = append(errs, fmt.Errorf("%s has %d bytes, want %d", guest+want.Name, got.size, want.Size))
		case got.digest != "" && got.digest != want.SHA256:
			errs = append(errs, fmt.Errorf("%s is not the kit's", guest+want.Name))
		}
	}
	return errors.Join(errs...)
}

// checksums checks that SHA256SUMS is of every file, and right.
func (r release) checksums() error {
	const name = "SHA256SUMS"
	text, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		return err
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(text)) {
		// Two spaces, as sha256sum --check wants it.
		sum, file, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok || sums[file] != "" {
			return fmt.Errorf("%s: the line %q", name, line)
		}
		sums[file] = sum
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.Name() == name {
			continue
		}
		sum, err := digest(filepath.Join(r.dir, e.Name()))
		switch {
		case err != nil:
			errs = append(errs, err)
		case sums[e.Name()] == "":
			errs = append(errs, fmt.Errorf("%s has no %s", name, e.Name()))
		case sums[e.Name()] != sum:
			errs = append(errs, fmt.Errorf("%s says of %s what is not so", name, e.Name()))
		}
		delete(sums, e.Name())
	}
	for file := range sums {
		errs = append(errs, fmt.Errorf("%s has %s, which is not there", name, file))
	}
	return errors.Join(errs...)
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
