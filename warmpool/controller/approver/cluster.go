// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package approver

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// AddToScheme adds all that is asked for here.
func AddToScheme(scheme *runtime.Scheme) error {
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, certificatesv1.AddToScheme, discoveryv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return err
		}
	}
	return nil
}

// Cluster is what a decision looks at beside the request. Nothing of it is changed.
type Cluster struct {
	Nodes []corev1.Node
	// Ledgers have the names of nodes that were there.
	Ledgers []v1alpha1.NodeLedger
	// Joined is who has joined, by name.
	Joined map[string]Joined
	// Services have addresses that are no node's.
	Services []corev1.Service
}

// Reserve keeps the host of a URL, by which an API server is reached, from nodes.
func (p *Policy) Reserve(server string) {
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return
	}
	if address, err := netip.ParseAddr(u.Hostname()); err == nil {
		p.Reserved = append(p.Reserved, address.Unmap())
		return
	}
	p.ReservedNames = append(p.ReservedNames, u.Hostname())
}

// withServers adds what the cluster itself says that its API servers are reached by: cluster-info, for who
// joins, and the endpoints of default/kubernetes, for pods.
func (p Policy) withServers(info *corev1.ConfigMap, endpoints *discoveryv1.EndpointSlice) (Policy, error) {
	p.Reserved, p.ReservedNames = slices.Clone(p.Reserved), slices.Clone(p.ReservedNames)
	if text := info.Data["kubeconfig"]; text != "" {
		config, err := clientcmd.Load([]byte(text))
		if err != nil {
			return p, fmt.Errorf("read the kubeconfig in kube-public/cluster-info: %w", err)
		}
		for _, c := range config.Clusters {
			p.Reserve(c.Server)
			if c.TLSServerName != "" {
				p.ReservedNames = append(p.ReservedNames, c.TLSServerName)
			}
		}
	}
	for _, e := range endpoints.Endpoints {
		for _, text := range e.Addresses {
			if address, err := netip.ParseAddr(text); err == nil {
				p.Reserved = append(p.Reserved, address.Unmap())
			} else {
				p.ReservedNames = append(p.ReservedNames, text)
			}
		}
	}
	return p, nil
}

// look is what a decision needs. The API server is asked for what is not watched: it is little, and asked seldom.
func (r *reconciler) look(ctx context.Context) (c Cluster, p Policy, m *corev1.ConfigMap, err error) {
	var nodes corev1.NodeList
	var ledgers v1alpha1.NodeLedgerList
	for _, list := range []client.ObjectList{&nodes, &ledgers} {
		if err := r.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return c, p, nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	var services corev1.ServiceList
	if err := r.live.List(ctx, &services); err != nil {
		return c, p, nil, fmt.Errorf("list services, whose addresses are no node's: %w", explain(err, "let the controller list services"))
	}
	var info corev1.ConfigMap
	var endpoints discoveryv1.EndpointSlice
	for _, known := range []struct {
		key client.ObjectKey
		to  client.Object
	}{{client.ObjectKey{Namespace: "kube-public", Name: "cluster-info"}, &info}, {client.ObjectKey{Namespace: "default", Name: "kubernetes"}, &endpoints}} {
		if err := r.live.Get(ctx, known.key, known.to); err != nil && !apierrors.IsNotFound(err) {
			return c, p, nil, fmt.Errorf("find out what the API server is reached by: %w", explain(err, fmt.Sprintf("let the controller get %T %s", known.to, known.key)))
		}
	}
	if p, err = r.policy.withServers(&info, &endpoints); err != nil {
		return c, p, nil, err
	}
	if m, err = r.register.read(ctx); err != nil {
		return c, p, nil, err
	}
	return Cluster{Nodes: nodes.Items, Ledgers: ledgers.Items, Joined: readJoined(m), Services: services.Items}, p, m, nil
}

// explain adds to the refusal of a right what to do about it.
func explain(err error, remedy string) error {
	if !apierrors.IsForbidden(err) {
		return err
	}
	return fmt.Errorf("%w: %s, as the chart and crds/rbac.yaml do", err, remedy)
}

// ExplainJoined does so for the ConfigMap JoinedName.
func ExplainJoined(err error, namespace string) error {
	return explain(err, fmt.Sprintf("make the ConfigMap %s of namespace %s, and let the controller get and update it", JoinedName, namespace))
}

// serviceAt is a Service that has an address as its own. The other kind are those that it is reached
// by from outside, which a load balancer may share with a node.
func serviceAt(services []corev1.Service, address netip.Addr) (name string, own bool) {
	is := func(text string) bool {
		parsed, err := netip.ParseAddr(text)
		return err == nil && parsed.Unmap() == address
	}
	for i := range services {
		s := &services[i]
		if is(s.Spec.ClusterIP) || slices.ContainsFunc(s.Spec.ClusterIPs, is) {
			return s.Namespace + "/" + s.Name, true
		}
		if is(s.Spec.LoadBalancerIP) || slices.ContainsFunc(s.Spec.ExternalIPs, is) ||
			slices.ContainsFunc(s.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool { return is(i.IP) }) {
			name = s.Namespace + "/" + s.Name
		}
	}
	return name, false
}
