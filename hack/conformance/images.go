// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// repositories are the registries that the specs take images from, by the names that
// KUBE_TEST_REPO_LIST has for them, with the folder of ours that stands in for each. Nothing
// is served in "invalid": specs want those pulls to fail.
var repositories = map[string]string{
	"promoterE2eRegistry":      "e2e",
	"buildImageRegistry":       "build",
	"invalidRegistry":          "invalid",
	"gcEtcdRegistry":           "etcd",
	"gcRegistry":               "kubernetes",
	"sigStorageRegistry":       "storage",
	"privateRegistry":          "private",
	"dockerLibraryRegistry":    "library",
	"cloudProviderGcpRegistry": "cloud",
}

// repositoryList is the content of the file that KUBE_TEST_REPO_LIST names.
func repositoryList(registry string) []byte {
	list := map[string]string{}
	for name, folder := range repositories {
		list[name] = registry + "/" + folder
	}
	b, err := json.Marshal(list) // which is YAML, too
	if err != nil {
		panic(err) // strings only
	}
	return append(b, '\n')
}

// wanted are the images that the release's specs name and this tool can make, as
// "folder/name:tag", in order, and those that it cannot make, for people to read.
func wanted(listed, registry string, makers map[string]maker) (served, missing []string, err error) {
	for line := range strings.Lines(listed) {
		ref := strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(ref, registry+"/")
		if !ok {
			continue // the binary also logs; an image of a registry that is not redirected cannot be served
		}
		path, tag, ok := strings.Cut(rest, ":")
		folder, name, inFolder := strings.Cut(path, "/")
		if !ok || !inFolder || tag == "" {
			return nil, nil, fmt.Errorf("image %q has no name or no tag", ref)
		}
		switch {
		case folder == repositories["invalidRegistry"] || folder == repositories["privateRegistry"]:
		case makers[name] != nil:
			served = append(served, rest)
		default:
			missing = append(missing, rest)
		}
	}
	if len(served) == 0 {
		return nil, nil, errors.New("the test binary lists no image that can be made here")
	}
	slices.Sort(served)
	slices.Sort(missing)
	return slices.Compact(served), slices.Compact(missing), nil
}

// maker makes an image.
type maker func() (v1.Image, error)

// alpine is what the upstream images are built on and ours are not. A spec finds out by this
// text whether it sees the right volume.
const alpine = "ID=busybox\nNAME=\"busybox of vk-firkin's tests, in the place of Alpine Linux\"\n"

// curl is the part of curl that the specs use, in the place of it: fetch a URL over HTTP.
const curl = `#!/bin/sh
seconds=30
while [ $# -gt 1 ]; do
	case $1 in
	-g | -q | -s | -S | -sS) shift ;;
	--max-time | --connect-timeout | -m) seconds=$2; shift 2 ;;
	*) echo "this curl is a script and does not know $1" >&2; exit 2 ;;
	esac
done
exec wget -q -T "$seconds" -O - "$1"
`

// bash stands in for bash: what the specs run in it, busybox's shell understands.
const bash = "#!/bin/sh\nexec /bin/sh \"$@\"\n"

// pause sleeps until it is told to end, as user and process 1 of its container.
const pause = "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait $!; done\n"

// nginx serves one page on port 80, in the foreground.
const nginx = "#!/bin/sh\nexec httpd -f -p 80 -h /usr/share/nginx/html\n"

// path is the search path of the upstream images.
const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// imageMakers are the images that can be made here, by name: agnhost and nonewprivs from
// the programs in the folder, the rest of busybox and scripts that do as much as the specs ask.
func imageMakers(ctx context.Context, programs, cache string) (map[string]maker, error) {
	base, err := images.Busybox(ctx, cache)
	if err != nil {
		return nil, err
	}
	shell, err := os.ReadFile(filepath.Join(programs, "sh"))
	if err != nil {
		return nil, err
	}
	derive := func(cfg v1.Config, entries ...images.Entry) maker {
		return func() (v1.Image, error) {
			l, err := images.Layer(append([]images.Entry{images.File("bin/sh", 0o755, string(shell))}, entries...)...)
			if err != nil {
				return nil, err
			}
			img, err := mutate.AppendLayers(base, l)
			if err != nil {
				return nil, err
			}
			cfg.Env = append([]string{path}, cfg.Env...)
			return mutate.Config(img, cfg)
		}
	}
	agnhost, err := os.ReadFile(filepath.Join(programs, "agnhost"))
	if err != nil {
		return nil, err
	}
	nnp, err := os.ReadFile(filepath.Join(programs, "nonewprivs"))
	if err != nil {
		return nil, err
	}
	agnhostEntries := []images.Entry{
		images.File("agnhost", 0o755, string(agnhost)),
		images.Symlink("agnhost-2", "agnhost"),
		images.File("bin/bash", 0o755, bash),
		images.File("bin/curl", 0o755, curl),
		images.Dir("uploads", 0o755),
		images.File("etc/os-release", 0o644, alpine),
		// A spec of supplementalGroupsPolicy runs as this user and wants this group.
		images.File("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		images.File("etc/group", 0o644, "root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnogroup:x:65534:\n"),
	}
	if agnhostEntries, err = appendFiles(agnhostEntries, filepath.Join(programs, "agnhost-files"), ""); err != nil {
		return nil, err
	}
	kitten, err := appendFiles(slices.Clone(agnhostEntries), filepath.Join(programs, "kitten-files"), "")
	if err != nil {
		return nil, err
	}
	agnhostConfig := v1.Config{
		Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "8080/tcp": {}, "8081/tcp": {}, "9376/tcp": {}, "5000/tcp": {}},
	}
	kittenConfig := agnhostConfig
	kittenConfig.Cmd = []string{"test-webserver"}
	plain := v1.Config{Cmd: []string{"sh"}}
	return map[string]maker{
		"agnhost":           derive(agnhostConfig, agnhostEntries...),
		"kitten":            derive(kittenConfig, kitten...),
		"busybox":           derive(plain),
		"glibc-dns-testing": derive(plain),
		"nonroot":           derive(v1.Config{Cmd: []string{"sh"}, User: "1234"}),
		"nonewprivs": derive(v1.Config{Cmd: []string{"nnp"}},
			images.Dir("usr/local", 0o755), images.Dir("usr/local/bin", 0o755),
			images.File("usr/local/bin/nnp", 0o6755, string(nnp))),
		"nginx": derive(v1.Config{Cmd: []string{"/usr/local/bin/nginx"}, StopSignal: "SIGQUIT", ExposedPorts: map[string]struct{}{"80/tcp": {}}},
			images.Dir("usr/local", 0o755), images.Dir("usr/local/bin", 0o755),
			images.File("usr/local/bin/nginx", 0o755, nginx),
			images.Dir("usr/share", 0o755), images.Dir("usr/share/nginx", 0o755), images.Dir("usr/share/nginx/html", 0o755),
			images.File("usr/share/nginx/html/index.html", 0o644, "Welcome to nginx's stand-in\n")),
		"pause": derive(v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}, images.File("pause", 0o755, pause)),
	}, nil
}

// appendFiles adds the regular files of a folder to an image's folder.
func appendFiles(entries []images.Entry, folder, into string) ([]images.Entry, error) {
	err := filepath.WalkDir(folder, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(folder, p)
		if err != nil {
			return err
		}
		entries = append(entries, images.File(into+filepath.ToSlash(name), 0o644, string(content)))
		return nil
	})
	return entries, err
}

// serve makes the images and puts them into the registry. An image that two references
// name is made once.
func serve(registry *images.Registry, served []string, makers map[string]maker) error {
	made := map[string]v1.Image{}
	for _, ref := range served {
		_, name, _ := strings.Cut(ref, "/")
		name, _, _ = strings.Cut(name, ":")
		img := made[name]
		if img == nil {
			var err error
			if img, err = makers[name](); err != nil {
				return fmt.Errorf("make image %s for linux/%s: %w", name, runtime.GOARCH, err)
			}
			made[name] = img
		}
		if _, err := registry.Push(ref, img); err != nil {
			return err
		}
	}
	return nil
}
