// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// maxVolumeBytes bounds what one volume's files may hold: a Secret or ConfigMap has
// at most 1 MiB, and a projected volume seldom more than a few of them.
const maxVolumeBytes = 8 << 20

// defaultFileMode is the API's default for files of volumes.
const defaultFileMode = 0o644

// tokenMode is the kubelet's for token files: 0600, or group-readable with an fsGroup.
const tokenMode, tokenGroupMode = 0o600, 0o640

// tokenCache keeps the tokens of one pod until they are to be renewed.
type tokenCache map[string]cachedToken

type cachedToken struct {
	token   string
	renewAt time.Time
}

// hasContent: the volume's files come from the API.
func hasContent(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// volumeSpec is how a volume is made in a machine of the shape; nil for what is no volume
// of the machine's own.
func volumeSpec(pod *corev1.Pod, v *corev1.Volume, shape vm.Shape) *agentv1.PutVolumeRequest {
	req := &agentv1.PutVolumeRequest{Name: v.Name}
	switch {
	case v.Image != nil:
		return nil // a slot of the machine
	case v.HostPath != nil:
		return req // a copy has the owners of what was copied
	case hasContent(v):
		req.Memory = true
	case v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory:
		req.Memory, req.SizeLimitBytes = true, memoryVolumeSize(pod, v.EmptyDir, shape)
	}
	if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		req.FsGroup = sc.FSGroup
	}
	return req
}

// memoryVolumeSize is the size of an emptyDir in memory, as the kubelet has it: its limit, but
// no more than the pod's memory limit or what the machine has for pods. Zero: not known.
// https://kubernetes.io/docs/concepts/storage/volumes/#emptydir
func memoryVolumeSize(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource, shape vm.Shape) int64 {
	size := max(0, shape.MemoryBytes-warmpool.GuestMemoryOverhead)
	least := func(n int64) {
		if n > 0 && (size == 0 || n < size) {
			size = n
		}
	}
	least(needOf(pod).MemoryLimitBytes)
	if e.SizeLimit != nil {
		least(e.SizeLimit.Value())
	}
	return size
}

// contentSource fetches what volumes are made of.
type contentSource struct {
	objects     *objects
	allocatable corev1.ResourceList
	nodeIP      string
}

// content fetches a volume's files, sorted by path.
func (c contentSource) content(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, tokens tokenCache) ([]*agentv1.File, error) {
	b := &contentBuilder{contentSource: c, pod: pod, name: v.Name, tokens: tokens, files: map[string]*agentv1.File{}}
	if err := b.volume(ctx, v); err != nil {
		return nil, fmt.Errorf("volume %q: %w", v.Name, err)
	}
	size := 0
	out := make([]*agentv1.File, 0, len(b.files))
	for _, f := range b.files {
		size += len(f.GetData())
		out = append(out, f)
	}
	if size > maxVolumeBytes {
		return nil, fmt.Errorf("volume %q: %d bytes, at most %d", v.Name, size, maxVolumeBytes)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].GetPath() < out[j].GetPath() })
	return out, nil
}

type contentBuilder struct {
	contentSource
	pod    *corev1.Pod
	name   string
	tokens tokenCache
	files  map[string]*agentv1.File
}

func (b *contentBuilder) volume(ctx context.Context, v *corev1.Volume) error {
	switch {
	case v.ConfigMap != nil:
		return b.configMap(ctx, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, modeOf(v.ConfigMap.DefaultMode))
	case v.Secret != nil:
		return b.secret(ctx, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, modeOf(v.Secret.DefaultMode))
	case v.DownwardAPI != nil:
		return b.downward(v.DownwardAPI.Items, modeOf(v.DownwardAPI.DefaultMode))
	case v.Projected != nil:
		mode := modeOf(v.Projected.DefaultMode)
		for _, s := range v.Projected.Sources {
			var err error
			switch {
			case s.ConfigMap != nil:
				err = b.configMap(ctx, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, mode)
			case s.Secret != nil:
				err = b.secret(ctx, s.Secret.Name, s.Secret.Items, s.Secret.Optional, mode)
			case s.DownwardAPI != nil:
				err = b.downward(s.DownwardAPI.Items, mode)
			case s.ServiceAccountToken != nil:
				err = b.token(ctx, s.ServiceAccountToken)
			case s.ClusterTrustBundle != nil:
				err = b.trustBundle(ctx, s.ClusterTrustBundle, mode)
			default:
				err = errors.New("has a source that this node does not know")
			}
			if err != nil {
				return err
			}
		}
		return nil
	default:
		return errors.New("has no source that this node knows")
	}
}

func modeOf(m *int32) uint32 {
	if m == nil {
		return defaultFileMode
	}
	return uint32(*m) & 0o777 //nolint:gosec // masked
}

func (b *contentBuilder) put(path string, data []byte, mode uint32) {
	b.files[path] = &agentv1.File{Path: path, Data: data, Mode: mode}
}

func (b *contentBuilder) configMap(ctx context.Context, name string, items []corev1.KeyToPath, optional *bool, mode uint32) error {
	cm, err := b.objects.configMap(ctx, b.pod.Namespace, name)
	if optionalMissing(err, optional) {
		return nil
	}
	if err != nil {
		return err
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, s := range cm.Data {
		data[k] = []byte(s)
	}
	for k, d := range cm.BinaryData {
		data[k] = d
	}
	return b.keys("ConfigMap "+name, data, items, optional, mode)
}

func (b *contentBuilder) secret(ctx context.Context, name string, items []corev1.KeyToPath, optional *bool, mode uint32) error {
	s, err := b.objects.secret(ctx, b.pod.Namespace, name)
	if optionalMissing(err, optional) {
		return nil
	}
	if err != nil {
		return err
	}
	return b.keys("Secret "+name, s.Data, items, optional, mode)
}

// keys projects all keys, or those that are listed, to files.
func (b *contentBuilder) keys(what string, data map[string][]byte, items []corev1.KeyToPath, optional *bool, mode uint32) error {
	if len(items) == 0 {
		for k, d := range data {
			b.put(k, d, mode)
		}
		return nil
	}
	for _, it := range items {
		d, ok := data[it.Key]
		if !ok {
			if optional != nil && *optional {
				continue
			}
			return fmt.Errorf("%s has no key %q", what, it.Key)
		}
		m := mode
		if it.Mode != nil {
			m = modeOf(it.Mode)
		}
		b.put(it.Path, d, m)
	}
	return nil
}

func (b *contentBuilder) downward(items []corev1.DownwardAPIVolumeFile, mode uint32) error {
	for _, it := range items {
		m := mode
		if it.Mode != nil {
			m = modeOf(it.Mode)
		}
		var value string
		var err error
		switch {
		case it.FieldRef != nil:
			value, err = fieldValue(b.pod, it.FieldRef.FieldPath, b.nodeIP)
		case it.ResourceFieldRef != nil:
			c := containerNamed(b.pod, it.ResourceFieldRef.ContainerName)
			if c == nil {
				return fmt.Errorf("container %q not found", it.ResourceFieldRef.ContainerName)
			}
			value, err = resourceValue(c, it.ResourceFieldRef, b.allocatable)
		}
		if err != nil {
			return err
		}
		b.put(it.Path, []byte(value), m)
	}
	return nil
}

// token gives a token that has at least a fifth of its life before it, and is at most
// 24 h old, as the kubelet does.
func (b *contentBuilder) token(ctx context.Context, t *corev1.ServiceAccountTokenProjection) error {
	expiration := int64(3600) // the API's default
	if t.ExpirationSeconds != nil {
		expiration = *t.ExpirationSeconds
	}
	now := time.Now()
	key := b.name + "/" + t.Path
	have, ok := b.tokens[key]
	if !ok || !now.Before(have.renewAt) {
		got, err := b.objects.token(ctx, b.pod, t.Audience, expiration)
		if err != nil {
			return err
		}
		have = cachedToken{token: got.Token, renewAt: now.Add(tokenLife(got.ExpirationTimestamp.Sub(now), seconds(expiration)) * 8 / 10)}
		b.tokens[key] = have
	}
	mode := uint32(tokenMode)
	f := &agentv1.File{Path: t.Path, Data: []byte(have.token)}
	if sc := b.pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		mode = tokenGroupMode
	} else if uid, one := singleUser(b.pod); one {
		f.Uid = &uid
	} else {
		// Containers of several users share the file: it has to be readable by all of them.
		mode = defaultFileMode
	}
	f.Mode = mode
	b.files[t.Path] = f
	return nil
}

// maxTokenLife is the age at which the kubelet renews a token at the latest, as four fifths of it.
const maxTokenLife = 30 * time.Hour

// tokenLife is how long a token is valid by its time of expiry and this host's clock, which
// need not be the API server's: no longer than was asked for, and one that seems to have expired is of a clock that
// is ahead.
func tokenLife(left, asked time.Duration) time.Duration {
	if left <= 0 || left > asked {
		left = asked
	}
	return min(left, maxTokenLife)
}

// singleUser is the user that all containers are set to run as, if it is one and known.
func singleUser(pod *corev1.Pod) (int64, bool) {
	uid := int64(-1)
	for i := range pod.Spec.Containers {
		u := runAsUser(pod, &pod.Spec.Containers[i])
		if u == nil || uid >= 0 && uid != *u {
			return 0, false
		}
		uid = *u
	}
	return uid, uid >= 0
}

// runAsUser is the numeric user that pod or container ask for; nil for the image's.
func runAsUser(pod *corev1.Pod, c *corev1.Container) *int64 {
	if sc := c.SecurityContext; sc != nil && sc.RunAsUser != nil {
		return sc.RunAsUser
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.RunAsUser
	}
	return nil
}
