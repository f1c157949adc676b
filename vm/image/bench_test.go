// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// benchLayer has the given number of files of the given size, half compressible.
func benchLayer(b *testing.B, files, size int) []byte {
	b.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	entries := make([]images.Entry, files)
	for i := range entries {
		content := make([]byte, size)
		for j := range content[:size/2] {
			content[j] = byte(rnd.Uint32())
		}
		for j := size / 2; j < size; j++ {
			content[j] = "vk-firkin "[j%10]
		}
		entries[i] = images.File(fmt.Sprintf("d%d/f%d", i%100, i), 0o644, string(content))
	}
	l, err := images.Layer(entries...)
	if err != nil {
		b.Fatal(err)
	}
	rc, err := l.Compressed()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = rc.Close() }()
	f := newMemFile()
	buf := make([]byte, 1<<20)
	for {
		n, err := rc.Read(buf)
		_, _ = f.Write(buf[:n])
		if err != nil {
			return f.b
		}
	}
}

// BenchmarkConvert measures a conversion on disk: MB/s of unpacked files, and the
// most heap in use while it runs, which must not grow with the size of the image.
func BenchmarkConvert(b *testing.B) {
	for _, bb := range []struct {
		name        string
		files, size int
	}{
		{"4x16MiB", 4, 16 << 20},
		{"16x16MiB", 16, 16 << 20},
		{"20000x4KiB", 20000, 4 << 10},
	} {
		b.Run(bb.name, func(b *testing.B) {
			layers := plain(benchLayer(b, bb.files, bb.size))
			const slot = 64 << 30
			b.SetBytes(int64(bb.files) * int64(bb.size))
			runtime.GC()
			var before runtime.MemStats
			runtime.ReadMemStats(&before)
			var peak atomic.Uint64
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					peak.Store(max(peak.Load(), m.HeapInuse))
					select {
					case <-stop:
						return
					case <-tick.C:
					}
				}
			}()
			n := 0
			for b.Loop() {
				n++
				t, err := index(b.Context(), layers, Limits{}.withDefaults(slot))
				if err != nil {
					b.Fatal(err)
				}
				f, err := create(durable.Host, filepath.Join(b.TempDir(), fmt.Sprint("disk", n)))
				if err != nil {
					b.Fatal(err)
				}
				if _, err := writeExt4(b.Context(), t, layers, f, slot); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			}
			close(stop)
			<-stopped
			b.ReportMetric(float64(peak.Load()-min(before.HeapInuse, peak.Load()))/(1<<20), "peakHeapMiB")
		})
	}
}
