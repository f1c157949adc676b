// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// DNS is what the node knows about name servers.
type DNS struct {
	// Machine are the name servers of a machine's own network.
	Machine []string
	// Cluster are the cluster's name servers; empty when it has none that machines reach.
	Cluster []string
	// Domain is the cluster's domain, for example "cluster.local".
	Domain string
}

// Limits of resolv.conf as the kubelet applies them.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchBytes = 2048
)

// resolver is what a pod's /etc/resolv.conf is to be.
type resolver struct {
	content []byte
	// fellBack: the pod asked for cluster DNS, which this node does not have, and got the machine's.
	fellBack bool
	// cut says what was left out, in the kubelet's words.
	cut []string
}

// resolvConf is the pod's by its dnsPolicy and dnsConfig.
func resolvConf(pod *corev1.Pod, dns DNS) resolver {
	var r resolver
	var servers, searches, options []string
	switch pod.Spec.DNSPolicy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		servers = dns.Machine
	default: // ClusterFirst, and ClusterFirstWithHostNet for a pod without the host's network
		if r.fellBack = len(dns.Cluster) == 0; r.fellBack {
			servers = dns.Machine
			break
		}
		servers = dns.Cluster
		if dns.Domain != "" {
			searches = []string{pod.Namespace + ".svc." + dns.Domain, "svc." + dns.Domain, dns.Domain}
		}
		options = []string{"ndots:5"}
	}
	servers, searches, options = slices.Clone(servers), slices.Clone(searches), slices.Clone(options)
	if c := pod.Spec.DNSConfig; c != nil {
		servers = unique(append(servers, c.Nameservers...))
		searches = unique(append(searches, c.Searches...))
		for _, o := range c.Options {
			text := o.Name
			if o.Value != nil && *o.Value != "" {
				text += ":" + *o.Value
			}
			options = slices.DeleteFunc(options, func(have string) bool {
				name, _, _ := strings.Cut(have, ":")
				return name == o.Name
			})
			options = append(options, text)
		}
	}
	if len(servers) > maxNameservers {
		servers = servers[:maxNameservers]
		r.cut = append(r.cut, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(servers, " "))
	}
	all := len(searches)
	searches = searches[:min(all, maxSearches)]
	for len(strings.Join(searches, " ")) > maxSearchBytes {
		searches = searches[:len(searches)-1]
	}
	if len(searches) < all {
		r.cut = append(r.cut, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(searches, " "))
	}
	var b strings.Builder
	if len(searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(searches, " "))
	}
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	r.content = []byte(b.String())
	return r
}

func unique(list []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(list, func(s string) bool {
		dup := seen[s]
		seen[s] = true
		return dup
	})
}

// hosts is the content of /etc/hosts. address is the machine's own.
func hosts(pod *corev1.Pod, dns DNS, address string) []byte {
	var b strings.Builder
	b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	if address != "" {
		name := hostname(pod)
		if full := fqdn(pod, dns); full != "" {
			fmt.Fprintf(&b, "%s\t%s\t%s\n", address, full, name)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", address, name)
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# Entries added by HostAliases.\n")
		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return []byte(b.String())
}

// fqdn is the pod's full name where it has a subdomain.
func fqdn(pod *corev1.Pod, dns DNS) string {
	if pod.Spec.Subdomain == "" || dns.Domain == "" || pod.Spec.HostnameOverride != nil {
		return ""
	}
	return fmt.Sprintf("%s.%s.%s.svc.%s", hostname(pod), pod.Spec.Subdomain, pod.Namespace, dns.Domain)
}

// maxKernelHostname is the longest that Linux takes.
const maxKernelHostname = 64

// kernelHostname is what the hostname command prints in the pod. It fails when the pod wants
// its full name there and that is too long.
func kernelHostname(pod *corev1.Pod, dns DNS) (string, error) {
	full := fqdn(pod, dns)
	if full == "" || pod.Spec.SetHostnameAsFQDN == nil || !*pod.Spec.SetHostnameAsFQDN {
		return hostname(pod), nil
	}
	if len(full) > maxKernelHostname {
		return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)",
			full, maxKernelHostname, len(full))
	}
	return full, nil
}
