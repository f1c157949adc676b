// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// envSource is where environment variables come from.
type envSource struct {
	objects     *objects
	services    func() ([]*corev1.Service, error)
	allocatable corev1.ResourceList
	nodeIP      string
}

// environment resolves a container's variables as the kubelet does: the image's, the
// services', envFrom in order, env in order with $(NAME) expanded; later ones win.
func (e envSource) environment(ctx context.Context, pod *corev1.Pod, c *corev1.Container, image []string) (*variables, error) {
	v := &variables{values: map[string]string{}}
	for _, kv := range image {
		name, value, _ := strings.Cut(kv, "=")
		v.set(name, value)
	}
	services, err := e.services()
	if err != nil {
		return nil, fmt.Errorf("list services: %w", err)
	}
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	service := map[string]string{}
	for _, kv := range serviceVariables(services, pod.Namespace, links) {
		service[kv[0]] = kv[1]
		v.set(kv[0], kv[1])
	}
	// References see the variables of the services and of this container, not the image's.
	known := service
	for _, from := range c.EnvFrom {
		data, err := e.from(ctx, pod.Namespace, from)
		if err != nil {
			return nil, err
		}
		names := make([]string, 0, len(data))
		for name := range data {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			v.set(from.Prefix+name, data[name])
			known[from.Prefix+name] = data[name]
		}
	}
	for i := range c.Env {
		value, ok, err := e.value(ctx, pod, c, &c.Env[i], known)
		if err != nil {
			return nil, err
		}
		if ok {
			v.set(c.Env[i].Name, value)
			known[c.Env[i].Name] = value
		}
	}
	v.known = known
	return v, nil
}

// prefetch returns what reads the objects that a container's variables come from, so
// that environment finds them there. What fails is read again by environment.
func (e envSource) prefetch(pod *corev1.Pod, c *corev1.Container) []func(context.Context) {
	var jobs []func(context.Context)
	configMap := func(name string) {
		jobs = append(jobs, func(ctx context.Context) { _, _ = e.objects.configMap(ctx, pod.Namespace, name) })
	}
	secret := func(name string) {
		jobs = append(jobs, func(ctx context.Context) { _, _ = e.objects.secret(ctx, pod.Namespace, name) })
	}
	for _, from := range c.EnvFrom {
		if r := from.ConfigMapRef; r != nil {
			configMap(r.Name)
		}
		if r := from.SecretRef; r != nil {
			secret(r.Name)
		}
	}
	for i := range c.Env {
		src := c.Env[i].ValueFrom
		if src == nil {
			continue
		}
		if r := src.ConfigMapKeyRef; r != nil {
			configMap(r.Name)
		}
		if r := src.SecretKeyRef; r != nil {
			secret(r.Name)
		}
	}
	return jobs
}

// from reads a whole ConfigMap or Secret.
func (e envSource) from(ctx context.Context, namespace string, from corev1.EnvFromSource) (map[string]string, error) {
	switch {
	case from.ConfigMapRef != nil:
		cm, err := e.objects.configMap(ctx, namespace, from.ConfigMapRef.Name)
		if optionalMissing(err, from.ConfigMapRef.Optional) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return cm.Data, nil
	case from.SecretRef != nil:
		secret, err := e.objects.secret(ctx, namespace, from.SecretRef.Name)
		if optionalMissing(err, from.SecretRef.Optional) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		data := make(map[string]string, len(secret.Data))
		for k, b := range secret.Data {
			data[k] = string(b)
		}
		return data, nil
	default:
		return nil, nil
	}
}

// value resolves one variable. ok is false when an optional source is missing.
func (e envSource) value(ctx context.Context, pod *corev1.Pod, c *corev1.Container, env *corev1.EnvVar, known map[string]string) (value string, ok bool, err error) {
	src := env.ValueFrom
	switch {
	case src == nil:
		return expand(env.Value, known), true, nil
	case src.FieldRef != nil:
		value, err = fieldValue(pod, src.FieldRef.FieldPath, e.nodeIP)
		return value, err == nil, err
	case src.ResourceFieldRef != nil:
		of := c
		if name := src.ResourceFieldRef.ContainerName; name != "" {
			if of = containerNamed(pod, name); of == nil {
				return "", false, fmt.Errorf("container %q not found", name)
			}
		}
		value, err = resourceValue(of, src.ResourceFieldRef, e.allocatable)
		return value, err == nil, err
	case src.ConfigMapKeyRef != nil:
		ref := src.ConfigMapKeyRef
		cm, err := e.objects.configMap(ctx, pod.Namespace, ref.Name)
		if optionalMissing(err, ref.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		if value, ok = cm.Data[ref.Key]; !ok && (ref.Optional == nil || !*ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return value, ok, nil
	case src.SecretKeyRef != nil:
		ref := src.SecretKeyRef
		secret, err := e.objects.secret(ctx, pod.Namespace, ref.Name)
		if optionalMissing(err, ref.Optional) {
			return "", false, nil
		}
		if err != nil {
			return "", false, err
		}
		b, ok := secret.Data[ref.Key]
		if !ok && (ref.Optional == nil || !*ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
		return string(b), ok, nil
	default:
		return "", true, nil
	}
}

// variables keeps names in the order in which they were first set.
type variables struct {
	names  []string
	values map[string]string
	// known are those that $(NAME) in command and args refers to.
	known map[string]string
}

func (v *variables) set(name, value string) {
	if _, ok := v.values[name]; !ok {
		v.names = append(v.names, name)
	}
	v.values[name] = value
}

func (v *variables) has(name string) bool { _, ok := v.values[name]; return ok }

// list is KEY=value in order.
func (v *variables) list() []string {
	out := make([]string, 0, len(v.names))
	for _, n := range v.names {
		out = append(out, n+"="+v.values[n])
	}
	return out
}

// expand replaces $(NAME) by its value where there is one, $$ by $, and leaves everything
// else as it is: https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
func expand(s string, known map[string]string) string {
	return expandBy(s, func(name string) (string, bool) {
		value, ok := known[name]
		return value, ok
	})
}

// expandBy is expand, asking for each name.
func expandBy(s string, known func(string) (string, bool)) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteString(s[i:])
				return b.String()
			}
			ref := s[i : i+end+1]
			if value, ok := known(ref[2 : len(ref)-1]); ok {
				b.WriteString(value)
			} else {
				b.WriteString(ref)
			}
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// serviceVariables are the variables that tell a container about services: always
// default/kubernetes, with links also those of the pod's namespace.
func serviceVariables(services []*corev1.Service, namespace string, links bool) [][2]string {
	chosen := map[string]*corev1.Service{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
			continue
		}
		master := s.Namespace == corev1.NamespaceDefault && s.Name == "kubernetes"
		if _, taken := chosen[s.Name]; links && s.Namespace == namespace || master && !taken {
			chosen[s.Name] = s
		}
	}
	names := make([]string, 0, len(chosen))
	for n := range chosen {
		names = append(names, n)
	}
	sort.Strings(names)
	var out [][2]string
	for _, n := range names {
		s := chosen[n]
		prefix := strings.ToUpper(strings.ReplaceAll(n, "-", "_"))
		out = append(out, [2]string{prefix + "_SERVICE_HOST", s.Spec.ClusterIP},
			[2]string{prefix + "_SERVICE_PORT", strconv.Itoa(int(s.Spec.Ports[0].Port))})
		for _, p := range s.Spec.Ports {
			if p.Name != "" {
				out = append(out, [2]string{prefix + "_SERVICE_PORT_" + strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_")), strconv.Itoa(int(p.Port))})
			}
		}
		for i, p := range s.Spec.Ports {
			protocol := string(p.Protocol)
			if protocol == "" {
				protocol = string(corev1.ProtocolTCP)
			}
			port := strconv.Itoa(int(p.Port))
			url := strings.ToLower(protocol) + "://" + net.JoinHostPort(s.Spec.ClusterIP, port)
			if i == 0 {
				out = append(out, [2]string{prefix + "_PORT", url})
			}
			base := prefix + "_PORT_" + port + "_" + strings.ToUpper(protocol)
			out = append(out, [2]string{base, url}, [2]string{base + "_PROTO", strings.ToLower(protocol)},
				[2]string{base + "_PORT", port}, [2]string{base + "_ADDR", s.Spec.ClusterIP})
		}
	}
	return out
}
