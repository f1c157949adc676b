// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux/layout"
)

func writeInitramfs(ctx context.Context, path string, k kernel, agent []byte, version string) error {
	mods, err := resolveModules(ctx, k.modules, modules)
	if err != nil {
		return err
	}
	records, err := initramfsRecords(ctx, mods, agent, version)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := writeCPIO(w, records); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write initramfs: %w", err)
	}
	return f.Close()
}

// initramfsRecords is the content of the initramfs in the order in which the kernel
// unpacks it. It is not compressed: under emulation unpacking costs more than reading.
func initramfsRecords(ctx context.Context, mods []module, agent []byte, version string) ([]cpio.Record, error) {
	var list strings.Builder
	records := []cpio.Record{
		// The kernel opens it as the agent's standard streams before anything is mounted.
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		// Where the one console is a virtio console, there is none until its module is
		// loaded, and Go's runtime ends a program that has no standard streams unless it
		// can open this in their place.
		cpio.CharDev("dev/null", 0o666, 1, 3),
	}
	for _, dir := range layout.Directories {
		records = append(records, cpio.Directory(strings.TrimPrefix(dir, "/"), 0o755))
	}
	records = append(records,
		cpio.StaticRecord(agent, cpio.Info{Name: layout.Agent, Mode: cpio.S_IFREG | 0o755}),
		cpio.Symlink("init", strings.TrimPrefix(layout.Agent, "/")),
		cpio.StaticFile(layout.Version, version+"\n", 0o644),
		cpio.Directory(layout.Modules, 0o755),
	)
	for _, m := range mods {
		b, err := readModuleFile(ctx, m.path)
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticRecord(b, cpio.Info{Name: layout.Modules + "/" + m.name + ".ko", Mode: cpio.S_IFREG | 0o644}))
		fmt.Fprintln(&list, strings.Join(append([]string{m.name}, m.depends...), " "))
	}
	return append(records, cpio.StaticFile(layout.ModuleList, list.String(), 0o644)), nil
}

func writeCPIO(w io.Writer, records []cpio.Record) error {
	rw := cpio.Newc.Writer(w)
	for i, r := range records {
		r = cpio.MakeReproducible(r)
		// Equal numbers would make hard links of them.
		r.Ino = uint64(i) + 1
		r.NLink = 1
		if err := rw.WriteRecord(r); err != nil {
			return err
		}
	}
	return cpio.WriteTrailer(rw)
}

// readModuleFile reads a module as the agent loads it: uncompressed.
func readModuleFile(ctx context.Context, path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		return os.ReadFile(path)
	}
	out, err := output(ctx, "", nil, "xz", "-dc", path)
	if err != nil {
		return nil, fmt.Errorf("unpack %s (xz is in Debian's xz-utils): %w", path, err)
	}
	return []byte(out), nil
}
