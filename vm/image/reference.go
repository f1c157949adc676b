// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// maxReferenceBytes bounds a reference: a registry (255), a repository (255), a
// tag (128) and a digest, with room to spare.
const maxReferenceBytes = 1024

// Policy says when to ask the registry, in the words of a container's
// imagePullPolicy.
type Policy string

// The pull policies. The empty one means IfNotPresent.
const (
	// PullAlways asks the registry what the reference stands for, and reuses the
	// cached disk when that is here already. It fails when the registry does not answer.
	PullAlways Policy = "Always"
	// PullIfNotPresent asks only when the reference is not known here.
	PullIfNotPresent Policy = "IfNotPresent"
	// PullNever takes what is here or fails with ErrNeverPull.
	PullNever Policy = "Never"
)

// parseReference reads a reference as the kubelet does: docker.io and library/
// are implied, a tag beside a digest is ignored, "latest" is the default tag.
// Registries in insecure are spoken to in plain HTTP.
func parseReference(ref string, insecure map[string]bool) (name.Reference, error) {
	if ref == "" || len(ref) > maxReferenceBytes {
		return nil, fmt.Errorf("%w: %d bytes, want 1 to %d", ErrInvalidReference, len(ref), maxReferenceBytes)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	repo := parsed.Context()
	if !validHost(repo.RegistryStr()) || !validRepository(repo.RepositoryStr()) {
		return nil, fmt.Errorf("%w: %q is not a registry's host and a repository", ErrInvalidReference, repo.Name())
	}
	if d, ok := parsed.(name.Digest); ok && !validDigest(d.DigestStr()) {
		return nil, fmt.Errorf("%w: digest %q, want sha256 and 64 hex digits", ErrInvalidReference, d.DigestStr())
	}
	if insecure[parsed.Context().RegistryStr()] {
		return name.ParseReference(ref, name.Insecure)
	}
	return parsed, nil
}

// validHost and validRepository add what the library leaves to the registry:
// the grammar of github.com/distribution/reference. Names end up in URLs, so "." and ".." must not pass.
func validHost(h string) bool {
	u, err := url.Parse("https://" + h)
	if err != nil || u.Host != h {
		return false
	}
	if net.ParseIP(u.Hostname()) != nil {
		return true
	}
	for label := range strings.SplitSeq(u.Hostname(), ".") {
		if label == "" || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
	}
	return true
}

func validRepository(r string) bool {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	for part := range strings.SplitSeq(r, "/") {
		if part == "" || !alnum(part[0]) || !alnum(part[len(part)-1]) {
			return false
		}
		if strings.Contains(part, "..") || strings.Contains(part, "___") {
			return false
		}
	}
	return true
}

// displayName is a reference as people know it: Docker Hub is docker.io, whatever
// its host is called.
func displayName(full string) string {
	if rest, ok := strings.CutPrefix(full, name.DefaultRegistry+"/"); ok {
		return "docker.io/" + rest
	}
	return full
}

// Normalize gives the full form of a reference, e.g. "busybox" becomes
// "docker.io/library/busybox:latest". The error is ErrInvalidReference.
func Normalize(ref string) (string, error) {
	parsed, err := parseReference(ref, nil)
	if err != nil {
		return "", err
	}
	return displayName(parsed.Name()), nil
}

const digestPrefix = "sha256:"

// validDigest reports whether d is "sha256:" and 64 lower-case hex digits.
func validDigest(d string) bool {
	h, ok := strings.CutPrefix(d, digestPrefix)
	return ok && validHex(h)
}

func validHex(h string) bool {
	if len(h) != 64 {
		return false
	}
	for _, c := range []byte(h) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// digestHex is the directory name of a digest.
func digestHex(d string) (string, error) {
	if !validDigest(d) {
		return "", errors.New("not a sha256 digest")
	}
	return d[len(digestPrefix):], nil
}
